# SPDX-License-Identifier: GPL-2.0-or-later
"""The first process of a guest: loads modules, mounts the host's files, runs one command, powers off.

It runs from the initial RAM disk in a copy of the host's own Python (`ramdisk` packs it), so the host needs neither
busybox nor a compiler. The host's files are the lower layer of an overlay: what is written to them stays in the guest's
memory. TMPDIR is a ramfs: a file there is an ordinary file, not shared memory, as it would be on a tmpfs.
"""

import ctypes
import json
import os
import sys
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_NR_FINIT_MODULE: Final = 313
_POWER_OFF: Final = 0x4321FEDC
_READ_ONLY: Final = 1
_9P: Final = "trans=virtio,version=9p2000.L,msize=512000,access=any"


def _mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind} on {target}: {os.strerror(number)}")


def _load(module: str) -> None:
    descriptor = os.open(module, os.O_RDONLY)
    if _libc.syscall(_NR_FINIT_MODULE, descriptor, b"", 0) != 0:
        number = ctypes.get_errno()
        if number != 17:  # EEXIST: built in, after all
            raise OSError(number, f"loading {module}: {os.strerror(number)}")
    os.close(descriptor)


def _prepare(modules: list[str]) -> None:
    """From the RAM disk to a root made of the host's files."""
    for module in modules:
        _load(module)
    _mount("host", "/host", "9p", _READ_ONLY, f"{_9P},cache=loose")
    _mount("layers", "/layers", "tmpfs", 0, "size=50%")
    os.makedirs("/layers/upper")
    os.makedirs("/layers/work")
    _mount("overlay", "/new", "overlay", 0, "lowerdir=/host,upperdir=/layers/upper,workdir=/layers/work")
    for kind, target in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("ramfs", "/run/tmp"),
    ):
        _mount(kind, f"/new{target}", kind)
    _mount("tmpfs", "/new/dev/shm", "tmpfs")
    os.chmod("/new/run/tmp", 0o1777)
    _mount("out", "/new/run/vmaweld", "9p", 0, f"{_9P},cache=none")
    os.chroot("/new")


def _run(command: list[str], directory: str, environment: dict[str, str]) -> int:
    """The command's exit status, or 128 + signal, or 127 where it could not be started."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(f"/run/vmaweld/.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
            os.chdir(directory)
            os.execvpe(command[0], command, environment)
        except OSError as error:
            os.write(2, f"{command[0]}: {error}\n".encode())
        os._exit(127)
    while True:  # as the first process we also inherit and reap the orphans
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def main() -> None:
    """Never returns."""
    try:
        with open("/guest.json", encoding="utf-8") as file:
            told = json.load(file)
        _prepare(told["modules"])
        status = _run(told["command"], told["directory"], told["environment"])
        with open("/run/vmaweld/.status", "w", encoding="utf-8") as file:
            file.write(str(status))
    except BaseException as error:
        sys.stdout.write(f"\nvmaweld-guest: {error}\n")
        sys.stdout.flush()
    os.sync()
    _libc.reboot(ctypes.c_int(_POWER_OFF))


if __name__ == "__main__":
    main()
