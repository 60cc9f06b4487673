# SPDX-License-Identifier: GPL-2.0-or-later
"""Build hook: compiles the model, its replay and live reports with mypyc, where a C compiler is there.

Where there is none, they stay plain Python.

``VMAWELD_COMPILE=1`` insists on compiling, ``VMAWELD_COMPILE=0`` forbids it. An editable install is always pure:
what is edited is what runs.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

# The model is compiled whole, at any depth. Of the other rooms, only what runs once for each event or each VMA.
COMPILED = [
    *(f"src/vmaweld/{name}.py" for name in ("abi", "events", "snapshot", "seams")),
    *(f"src/vmaweld/study/{name}.py" for name in ("replay", "missed", "timeline", "tally")),
    "src/vmaweld/kernel/bpf/records.py",
    *(f"src/vmaweld/inspect/{name}.py" for name in ("collect", "kinds", "obstacles", "report")),
    *sorted(path for path in glob("src/vmaweld/policy/*.py") if Path(path).name != "__init__.py"),
    *sorted(path for path in glob("src/vmaweld/model/**/*.py", recursive=True) if Path(path).name != "__init__.py"),
]
# One run of setup.py serves many commands (egg_info, sdist, editable_wheel ...); only these need the extensions.
BUILDS = {"bdist_wheel", "build", "build_ext", "install"}


def compiler_works() -> bool:
    """True if a C extension could be built here: the compiler runs, finds Python.h and links."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n")
        include = sysconfig.get_path("include")
        try:
            probe = subprocess.run(
                [*command, "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(Path(folder, "probe.so"))],
                capture_output=True,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return probe.returncode == 0


def extensions() -> list[Any]:
    """The compiled modules; none where they are not wanted or cannot be had."""
    wish = os.environ.get("VMAWELD_COMPILE", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"VMAWELD_COMPILE is {wish!r}: use 1 (compile), 0 (do not) or leave it unset")
    if wish == "0" or not BUILDS.intersection(sys.argv):
        return []
    if wish != "1" and not compiler_works():
        print("vmaweld: no C compiler with Python's headers: building as plain Python", file=sys.stderr)
        return []
    from mypyc.build import mypycify

    return mypycify(COMPILED, opt_level="3", debug_level="0", group_name="vmaweld")


setup(ext_modules=extensions())
