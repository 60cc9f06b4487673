"""Running batches in this process."""

import ctypes
import os
from typing import Final

from vmaweld import abi
from vmaweld.kernel import syscalls
from vmaweld.welding import machine_code as mc
from vmaweld.welding.program import Outcome, Program

NAME: Final = "vmaweld-weld"
"""Name of the memfd that holds code, journal and entries; in maps it reads ``/memfd:vmaweld-weld (deleted)``."""

_Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(program: Program) -> tuple[tuple[str, int], list[Outcome]]:
    """Run `program`, which must be finished, on this process's own memory; returns `Program.outcomes`.

    Raises OSError where there is no memory, descriptor or VMA for the code itself.
    """
    length = abi.page_align_up(mc.CODE_SIZE + program.size)
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    address = 0
    try:
        os.ftruncate(fd, length)
        os.pwrite(fd, mc.CODE, 0)
        address = syscalls.mmap(0, length, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_SHARED, fd)
        syscalls.mmap(address, mc.CODE_SIZE, abi.PROT_READ | abi.PROT_EXEC, abi.MAP_SHARED | abi.MAP_FIXED, fd)
        header = address + mc.CODE_SIZE
        entries = program.place(header)
        data = mc.header(header + mc.HEADER_SIZE) + entries
        ctypes.memmove(header, data, len(data))
        _Run(address + mc.CALL_ENTRY)(header)
        return program.outcomes(ctypes.string_at(header + mc.HEADER_SIZE, len(entries)))
    finally:
        os.close(fd)
        if address:
            syscalls.munmap(address, length)
