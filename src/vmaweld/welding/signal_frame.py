"""The stack frame from which rt_sigreturn(2) puts a thread back where it was.

The kernel builds such a frame to run a signal handler; here it is built for a single system call that a stopped thread
makes on our behalf, so that the thread goes back by itself should nobody be there to put it back.
Layout: ``arch/x86/include/uapi/asm/sigcontext.h``, ``struct rt_sigframe`` in ``arch/x86/include/asm/sigframe.h``.
"""

import ctypes
import struct
from functools import cache
from typing import Final

from vmaweld import abi
from vmaweld.kernel import syscalls
from vmaweld.kernel.ptrace import Registers

RED_ZONE: Final = 128

_UC_FLAGS: Final = 1 | 2 | 4  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_NO_STACK: Final = 0x7FFF_FFFF  # no valid ss_flags: the thread's sigaltstack stays what it is
_XSTATE_OFFSET: Final = 512 + 64
_SOFTWARE_BYTES: Final = 464
_MAGIC1: Final = 0x4650_5853
_MAGIC2: Final = 0x4650_5845
_DYNAMIC: Final = 1 << 18  # AMX tile data: in frames of those threads only that asked for it


def build(bottom: int, regs: Registers, mask: int, xstate: bytes, restorer: int) -> tuple[int, bytes]:
    """(address, bytes) of a frame that ends at or below `bottom`.

    A thread that executes ``ret`` with rsp there gets `regs` and the signal mask `mask` back, by way of `restorer`,
    which is code that calls rt_sigreturn. xstate: as `ptrace.extended_state` gives it.
    """
    image = _signal_image(xstate)
    size = 8 + 304
    state_at = (bottom - len(image)) & -64
    frame_at = (state_at - size) & -16
    context = struct.pack(
        "<23Q",
        *(regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15),
        *(regs.rdi, regs.rsi, regs.rbp, regs.rbx, regs.rdx, regs.rax, regs.rcx, regs.rsp, regs.rip),
        regs.eflags,
        regs.cs & 0xFFFF | (regs.ss & 0xFFFF) << 48,
        *(0, 0, 0, 0),  # err, trapno, oldmask, cr2
    ) + struct.pack("<Q", state_at)
    frame = struct.pack("<QQQQII", restorer, _UC_FLAGS, 0, 0, _NO_STACK, 0) + bytes(8)
    frame += context.ljust(256, b"\0") + struct.pack("<Q", mask)
    assert len(frame) == size
    return frame_at, frame.ljust(state_at - frame_at, b"\0") + image


def _signal_image(xstate: bytes) -> bytes:
    """The image as signal frames hold it: sized for this thread's features, with the marks of a full image."""
    (features,) = struct.unpack_from("<Q", xstate, _SOFTWARE_BYTES)
    (present,) = struct.unpack_from("<Q", xstate, 512)
    if not present & _DYNAMIC:
        features &= ~_DYNAMIC
    size = min(len(xstate), _size_of(features))
    image = bytearray(xstate[:size])
    image[_SOFTWARE_BYTES:512] = struct.pack("<IIQI", _MAGIC1, size + 4, features, size).ljust(48, b"\0")
    return bytes(image) + struct.pack("<I", _MAGIC2)


def _size_of(features: int) -> int:
    """Bytes of an uncompacted XSAVE image with those features: CPUID leaf 0xD tells where each ends."""
    end = _XSTATE_OFFSET
    for bit in range(2, 63):
        if features >> bit & 1:
            size, offset = _cpuid_d(bit)
            end = max(end, offset + size)
    return end


@cache
def _cpuid_d(index: int) -> tuple[int, int]:
    """(eax, ebx) of CPUID leaf 0xD, subleaf `index`: size and offset of that feature's state."""
    code = bytes.fromhex(
        "53"  # push rbx
        "4889f1"  # mov rcx, rsi       (subleaf)
        "4989f8"  # mov r8, rdi        (result)
        "b80d000000"  # mov eax, 0xd
        "0fa2"  # cpuid
        "418900"  # mov [r8], eax
        "41895804"  # mov [r8+4], ebx
        "5b"  # pop rbx
        "c3"  # ret
    )
    at = syscalls.mmap(0, abi.PAGE_SIZE, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS)
    try:
        ctypes.memmove(at, code, len(code))
        syscalls.mprotect(at, abi.PAGE_SIZE, abi.PROT_READ | abi.PROT_EXEC)
        result = (ctypes.c_uint32 * 2)()
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)(at)(ctypes.addressof(result), index)
        return result[0], result[1]
    finally:
        syscalls.munmap(at, abi.PAGE_SIZE)
