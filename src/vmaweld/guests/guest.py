# SPDX-License-Identifier: GPL-2.0-or-later
r"""A command in a guest: QEMU boots another kernel over this machine's own files and runs one command in it as root.

>>> guest = Guest("6.1")                                             # doctest: +SKIP
>>> guest.run(["uname", "-r"]).stdout                                # doctest: +SKIP
'6.1.0-56-amd64\n'

The guest sees the host's files read-only through 9p, under an overlay in its memory, at the same paths, so the very
same installation of Python and of this package runs in it. What the command writes into the directory `OUTPUT` (in the
environment as VMAWELD_OUTPUT) lies in `output` on the host afterwards.

Nothing is needed on the host but QEMU: the initial RAM disk (`ramdisk`) brings its own Python. TCG emulates the
processor: slow, but it works wherever QEMU does.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vmaweld.guests.archive import GuestError
from vmaweld.guests.image import Image, cached, fetch
from vmaweld.guests.ramdisk import pack
from vmaweld.scratch import Scratch

__all__ = ["OUTPUT", "Finished", "Guest", "GuestError", "available", "installed"]

OUTPUT: Final = "/run/vmaweld"
"""The guest's directory whose files are brought back."""

_QEMU: Final = "qemu-system-x86_64"
# The console is read only when the guest fails; mitigations cost a third of a TCG guest's speed.
_KERNEL_OPTIONS: Final = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on LC_ALL=C.UTF-8"
_POLL: Final = 0.2


class Finished(NamedTuple):
    """status: the command's exit status (128 + N where signal N ended it). stdout, stderr: what it wrote, as text."""

    status: int
    stdout: str
    stderr: str


def installed() -> bool:
    """True if there is a QEMU to boot guests in."""
    return shutil.which(_QEMU) is not None


def available(version: str) -> tuple[bool, str]:
    """(whether a guest of `version` can be booted without fetching anything, the reason where not)."""
    if not installed():
        return False, f"no {_QEMU}: install qemu-system-x86"
    if cached(version) is None:
        return False, f"the kernel image {version} is not in the cache"
    return True, ""


class Guest:
    """A kernel to run commands under.

    version: of `archive.KERNELS`, or whatever newer one the Debian archive holds; its newest image is used.
    memory: MiB. options: more for the kernel's command line. progress: told in a line what takes time.
    Raises GuestError where QEMU or the image cannot be had.
    """

    def __init__(
        self,
        version: str,
        *,
        memory: int = 2048,
        cpus: int = 1,
        options: str = "",
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not installed():
            raise GuestError(f"no {_QEMU}: install qemu-system-x86")
        self.version = version
        self._memory = memory
        self._cpus = cpus
        self._options = options
        self._progress = progress
        self._image: Image = fetch(version, progress)

    @property
    def release(self) -> str:
        """The kernel's name, as ``uname -r`` tells it in the guest."""
        return self._image.release

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 600.0,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> Finished:
        """Boot, run `command` as root, power off.

        timeout: seconds for all of it. directory: where it runs, by default the current one.
        environment: added to the few variables it gets (PATH, HOME, LANG, TMPDIR, VMAWELD_OUTPUT).
        output: an existing directory that takes what the command leaves in `OUTPUT`.
        on_stderr: called with what it writes to stderr, while it runs.
        Raises GuestError: it did not boot, or did not end in time.
        """
        with Scratch() as scratch:
            shared = scratch.path / "out"
            shared.mkdir()
            ramdisk = scratch.path / "ramdisk"
            told = {
                "command": list(command),
                "directory": directory or os.getcwd(),
                "environment": {
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": "/root",
                    "LANG": "C.UTF-8",
                    "TMPDIR": "/run/tmp",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "VMAWELD_OUTPUT": OUTPUT,
                    **(environment or {}),
                },
                "modules": [f"/modules/{module.name}" for module in self._image.modules],
            }
            ramdisk.write_bytes(pack(self._image.modules, told))
            self._progress(f"booting Linux {self.release}")
            console = self._boot(ramdisk, shared, timeout, on_stderr)
            finished = self._result(shared, console)
            if output is not None:
                for path in shared.iterdir():
                    if path.name not in (".stdout", ".stderr", ".status"):
                        shutil.move(path, output / path.name)
            return finished

    def _arguments(self, ramdisk: Path, shared: Path) -> list[str]:
        share = "security_model=none,multidevs=remap"
        return [
            _QEMU,
            *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", str(self._memory), "-smp", str(self._cpus)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(self._image.kernel), "-initrd", str(ramdisk)),
            *("-append", f"{_KERNEL_OPTIONS} {self._options}"),
            *("-virtfs", f"local,path=/,mount_tag=host,readonly=on,{share}"),
            *("-virtfs", f"local,path={shared},mount_tag=out,{share}"),
        ]

    def _boot(self, ramdisk: Path, shared: Path, timeout: float, on_stderr: Callable[[str], None] | None) -> str:
        """What the console showed. The guest has powered off, or GuestError is raised and QEMU is gone."""
        deadline = time.monotonic() + timeout
        stderr = shared / ".stderr"
        shown = 0
        with tempfile.TemporaryFile() as console:
            qemu = subprocess.Popen(
                self._arguments(ramdisk, shared),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while qemu.poll() is None:
                    if time.monotonic() > deadline:
                        raise GuestError(f"the guest with Linux {self.release} did not end within {timeout:g} s")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        qemu.wait(_POLL)
                    if on_stderr is not None and stderr.exists():
                        with stderr.open("rb") as file:
                            file.seek(shown)
                            new = file.read()
                        shown += len(new)
                        if new:
                            on_stderr(new.decode(errors="replace"))
            finally:
                if qemu.poll() is None:
                    qemu.send_signal(signal.SIGKILL)
                    qemu.wait()
            console.seek(0)
            said = console.read().decode(errors="replace")
        if qemu.returncode:
            raise GuestError(f"{_QEMU} failed: {_last_line(said)}")
        return said

    def _result(self, shared: Path, console: str) -> Finished:
        try:
            status = int((shared / ".status").read_text())
        except (OSError, ValueError):
            raise GuestError(
                f"the guest with Linux {self.release} did not get as far as running the command: {_last_line(console)}"
            ) from None
        texts = []
        for name in (".stdout", ".stderr"):
            path = shared / name
            texts.append(path.read_bytes().decode(errors="replace") if path.exists() else "")
        return Finished(status, texts[0], texts[1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if "vmaweld-guest:" in line:
            return line
        if "Kernel panic" in line:
            return " ".join(lines[max(number - 1, 0) : number + 1])
    return lines[-1] if lines else "its console is empty"
