r"""A command in a guest: QEMU boots another kernel over this machine's own files and runs one command in it as root.

>>> guest = Guest("6.1")                                             # doctest: +SKIP
>>> guest.run(["uname", "-r"]).stdout                                # doctest: +SKIP
'6.1.0-56-amd64\n'

The guest sees the host's files read-only through 9p, under an overlay in its memory, at the same paths, so the very
same installation of Python and of this package runs in it. What the command writes into the directory `OUTPUT` (in the
environment as VMAWELD_OUTPUT) lies in `output` on the host afterwards.

The initial RAM disk holds a copy of this Python with the few modules that `init` imports; nothing else is needed
on the host but QEMU. TCG emulates the processor: slow, but it works wherever QEMU does.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vmaweld.guests import init as guest_init
from vmaweld.guests.archive import GuestError
from vmaweld.guests.image import Image, cached, fetch
from vmaweld.scratch import Scratch

__all__ = ["OUTPUT", "Finished", "Guest", "GuestError", "available"]

OUTPUT: Final = "/run/vmaweld"
"""The guest's directory whose files are brought back."""

_QEMU: Final = "qemu-system-x86_64"
# The console is read only when the guest fails; mitigations cost a third of a TCG guest's speed.
_KERNEL_OPTIONS: Final = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on LC_ALL=C.UTF-8"
_POLL: Final = 0.2

# Names of all libraries that this Python has loaded, as they were asked for, and of the modules it has imported.
_LIST_FILES: Final = """
import ctypes, json, os, sys, encodings.utf_8, encodings.ascii, encodings.latin_1
with open(sys.argv[1]) as file:
    exec(compile(file.read(), "init", "exec"), {"__name__": "init"})
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
names = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def note(info, size, data):
    if info.contents.name:
        names.append(os.fsdecode(info.contents.name))
    return 0
ctypes.CDLL(None).dl_iterate_phdr(note, None)
files = [module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)]
files += [os.path.join(os.path.dirname(os.__file__), "os.py")]
print(json.dumps([name for name in names + files if name.startswith("/")]))
"""


class Finished(NamedTuple):
    """status: the command's exit status (128 + N where signal N ended it). stdout, stderr: what it wrote, as text."""

    status: int
    stdout: str
    stderr: str


def available(version: str) -> tuple[bool, str]:
    """(whether a guest of `version` can be booted without fetching anything, the reason where not)."""
    if shutil.which(_QEMU) is None:
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
        if shutil.which(_QEMU) is None:
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
            ramdisk.write_bytes(_ramdisk(self._image, told))
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


def _ramdisk(image: Image, told: Mapping[str, object]) -> bytes:
    """A cpio archive ("newc") with Python, its libraries, the modules, `init` as /init and /guest.json."""
    python = os.path.realpath(sys.executable)
    init = Path(guest_init.__file__).read_bytes()
    listed = subprocess.run(
        [python, "-S", "-s", "-E", "-c", _LIST_FILES, guest_init.__file__],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    archive = _Cpio()
    for name in json.loads(listed):
        archive.add_file(name)
    archive.add_file(python)
    loader = _elf_interpreter(Path(python).read_bytes())
    if loader:
        archive.add_file(loader)
    if os.path.exists("/etc/ld.so.cache"):
        archive.add_file("/etc/ld.so.cache")
    for module in image.modules:
        archive.add(f"/modules/{module.name}", module.read_bytes())
    archive.add("/guest.json", json.dumps(told).encode())
    archive.add("/init", f"#!{python} -BSsE\n".encode() + init, executable=True)
    return archive.finish()


def _elf_interpreter(program: bytes) -> str:
    """The dynamic loader that an ELF program asks for (PT_INTERP), "" for none."""
    table = int.from_bytes(program[32:40], "little")
    size = int.from_bytes(program[54:56], "little")
    for index in range(int.from_bytes(program[56:58], "little")):
        header = program[table + index * size : table + (index + 1) * size]
        if int.from_bytes(header[0:4], "little") == 3:
            offset = int.from_bytes(header[8:16], "little")
            length = int.from_bytes(header[32:40], "little")
            return program[offset : offset + length].rstrip(b"\0").decode()
    return ""


class _Cpio:
    """A "newc" cpio archive in the making (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._names: set[str] = set()
        self._inode = 0

    def add_file(self, name: str) -> None:
        """The host's file `name`, links followed, at the same path; and its bytecode where Python has cached it."""
        if name.rstrip("/") in self._names:
            return
        path = Path(name)
        self.add(name, path.read_bytes(), executable=bool(path.stat().st_mode & stat.S_IXUSR))

    def add(self, name: str, data: bytes, *, executable: bool = False) -> None:
        """A file of `data` at the absolute path `name`, with the directories above it."""
        if name in self._names:
            return
        for parent in reversed(Path(name).parents):
            directory = str(parent)
            if directory != "/" and directory not in self._names:
                self._entry(directory, stat.S_IFDIR | 0o755, b"")
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._names.add(name)
        self._inode += 1
        encoded = os.fsencode(name.lstrip("/")) + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)

    def finish(self) -> bytes:
        """The archive."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)
