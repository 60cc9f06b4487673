# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of system calls: one table, against the C library's headers, and against the two programs apart."""

import re
import shutil
import subprocess

from conftest import require

from vmaweld.executor import child
from vmaweld.guests import init
from vmaweld.kernel import userfaultfd, x86_64

OTHER_NAMES = {"pwrite": "pwrite64"}
NEWER_THAN_HEADERS = {"mseal"}
"""Calls that the headers of an older distribution do not have."""


def test_no_two_calls_have_one_number() -> None:
    assert len(set(x86_64.NUMBERS.values())) == len(x86_64.NUMBERS)


def test_the_numbers_are_those_of_the_headers() -> None:
    require(shutil.which("cc") is not None, "no C compiler")
    told = subprocess.run(
        ["cc", "-E", "-dM", "-x", "c", "-"], input="#include <asm/unistd_64.h>\n", capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    found = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", told.stdout)}
    for name, number in x86_64.NUMBERS.items():
        if name not in NEWER_THAN_HEADERS:
            assert found[name] == number, name


def test_the_programs_apart_from_the_package_agree() -> None:
    for module in (child, init):
        own = {name[4:].lower(): value for name, value in vars(module).items() if name.startswith("_NR_")}
        assert own
        for name, number in own.items():
            assert x86_64.NUMBERS[OTHER_NAMES.get(name, name)] == number, name
    for request in ("API", "REGISTER", "UNREGISTER", "MOVE"):
        assert getattr(child, f"_UFFDIO_{request}") == getattr(userfaultfd, f"UFFDIO_{request}")
