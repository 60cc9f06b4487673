# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial RAM disk of a guest: this Python, its libraries, kernel modules, and `init` as the first process.

It is a cpio archive of the kind "newc". The Python in it is a copy of the one that runs here, with the few modules that
`init` imports.
"""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from vmaweld.guests import init as guest_init

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


def pack(modules: Iterable[Path], told: Mapping[str, object]) -> bytes:
    """The RAM disk as bytes.

    modules: files of kernel modules, for /modules. told: what `init` reads from /guest.json.
    """
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
    for module in modules:
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
