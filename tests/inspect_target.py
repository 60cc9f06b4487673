# SPDX-License-Identifier: GPL-2.0-or-later
"""A process whose seams are known, to be inspected: ``python inspect_target.py SCENE``.

It lays the scene out, prints one line (the addresses of its seams, in hex) and sleeps until its stdin closes.
"""

import ctypes
import mmap as python_mmap
import os
import sys

PAGE = 4096
READ, WRITE = 1, 2
MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE = 0x02, 0x20, 0x10, 0x4000
MREMAP_MAYMOVE_FIXED = 3

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def map_memory(length: int, protection: int = READ | WRITE, address: int = 0) -> int:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (MAP_FIXED if address else 0)
    found = libc.mmap(address, length, protection, flags, -1, 0)
    if found == ctypes.c_void_p(-1).value:
        raise failed()
    assert isinstance(found, int)
    return found


def reserve(length: int) -> int:
    """`length` bytes without access that touch nothing: a page below and above stays unmapped."""
    address = map_memory(length + 2 * PAGE, 0)
    libc.munmap(address, PAGE)
    libc.munmap(address + PAGE + length, PAGE)
    return address + PAGE


def move(source: int, length: int, target: int) -> None:
    if libc.mremap(source, length, length, MREMAP_MAYMOVE_FIXED, target) != target:
        raise failed()


def touch(address: int, length: int) -> None:
    for at in range(address, address + length, PAGE):
        ctypes.memset(at, 1, 1)


def moved(pieces: int, pages: int = 1) -> list[int]:
    """`pieces` buffers, each faulted apart and moved to touch the next: page offset and anon_vma hold every seam."""
    length = pages * PAGE
    target = reserve(pieces * length)
    source = reserve(length)
    for piece in range(pieces):
        map_memory(length, READ | WRITE, source)
        touch(source, PAGE)
        move(source, length, target + piece * length)
    return [target + piece * length for piece in range(1, pieces)]


def apart() -> list[int]:
    """Two halves faulted while a different protection kept them apart: the anon_vma alone holds the seam."""
    address = reserve(4 * PAGE)
    map_memory(2 * PAGE, READ | WRITE, address)
    touch(address, PAGE)
    map_memory(2 * PAGE, READ | WRITE, address + 3 * PAGE)  # a page lies between: an anon_vma of its own
    touch(address + 3 * PAGE, PAGE)
    map_memory(PAGE, READ | WRITE, address + 2 * PAGE)  # joins one of them, not both
    return [address + 3 * PAGE]


def mixed() -> list[int]:
    """One seam of each of some kinds, side by side."""
    address = map_memory(8 * PAGE)
    touch(address, 8 * PAGE)
    libc.mprotect(address + 2 * PAGE, 2 * PAGE, READ)
    libc.madvise(address + 6 * PAGE, 2 * PAGE, python_mmap.MADV_DONTFORK)
    return [*moved(5, 4), *apart()]


def many() -> list[int]:
    """60,000 VMAs: moved pieces, and pages of two protections in turn."""
    count = 15_000
    address = reserve(2 * count * PAGE)
    map_memory(2 * count * PAGE, READ | WRITE, address)
    for page in range(0, 2 * count, 2):
        libc.mprotect(address + page * PAGE, PAGE, READ)
    return moved(30_000)


def forked() -> list[int]:
    """Moved pieces whose pages a child shares; the child ends when we do."""
    seams = moved(4)
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    return seams


def odd_file_name() -> list[int]:
    """A mapped file whose name holds a newline, an escape sequence, a quote, markup and a byte that is no UTF-8."""
    name = b"odd\n\x1b[31m<script>'\"&[b]\\\xff"
    folder = os.fsencode(sys.argv[2])
    path = os.path.join(folder, name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 2 * PAGE)
    libc.mmap(None, 2 * PAGE, READ | WRITE, MAP_PRIVATE, fd, 0)
    return moved(2)


def busy() -> list[int]:
    """Says its line and then changes its memory until stdin closes."""
    print("", flush=True)
    os.set_blocking(0, False)
    while os.read(0, 1) if ready() else True:
        for at in moved(20):
            libc.munmap(at - PAGE, 2 * PAGE)
    return []


def ready() -> bool:
    import select

    return bool(select.select([0], [], [], 0)[0])


def main() -> None:
    scene = {scene.__name__: scene for scene in (apart, mixed, many, forked, odd_file_name, busy)}[sys.argv[1]]
    print(*[f"{seam:x}" for seam in scene()], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
