# SPDX-License-Identifier: GPL-2.0-or-later
"""The code that puts a borrowed thread back where it was, when no tracer is there to do it.

A stopped thread of another process is made to work in code of ours (`trampoline`, `machine_code`). That code ends
here: every register, the flags and the signal mask come from the block of saved values that lies right behind the code.
Nothing is read from or written to the thread's stack, so the thread may stop anywhere, on a stack of any size. System
calls leave the vector registers alone, so they need no saving.
"""

import struct
from typing import Final

from vmaweld.kernel.ptrace import Registers

LISTING: Final = """
way_back:
    b80e000000         mov eax, 14  # rt_sigprocmask(SIG_SETMASK, its own, NULL, 8)
    bf02000000         mov edi, 2
    488d351f010000     lea rsi, [rip+saved+MASK]
    31d2               xor edx, edx
    41ba08000000       mov r10d, 8
    0f05               syscall
    8b0d1b010000       mov ecx, [rip+saved+DIRECTION]
    e301               jrcxz forwards
    fd                 std
forwards:  # popf would need a stack: the overflow flag comes from an addition, the other five from ah
    8b050e010000       mov eax, [rip+saved+STATUS]
    047f               add al, 0x7f
    9e                 sahf
    488b0574000000     mov rax, [rip+saved+RAX]
    488b1d75000000     mov rbx, [rip+saved+RBX]
    488b0d76000000     mov rcx, [rip+saved+RCX]
    488b1577000000     mov rdx, [rip+saved+RDX]
    488b3578000000     mov rsi, [rip+saved+RSI]
    488b3d79000000     mov rdi, [rip+saved+RDI]
    488b2d7a000000     mov rbp, [rip+saved+RBP]
    488b257b000000     mov rsp, [rip+saved+RSP]
    4c8b057c000000     mov r8, [rip+saved+R8]
    4c8b0d7d000000     mov r9, [rip+saved+R9]
    4c8b157e000000     mov r10, [rip+saved+R10]
    4c8b1d7f000000     mov r11, [rip+saved+R11]
    4c8b2580000000     mov r12, [rip+saved+R12]
    4c8b2d81000000     mov r13, [rip+saved+R13]
    4c8b3582000000     mov r14, [rip+saved+R14]
    4c8b3d83000000     mov r15, [rip+saved+R15]
    ff2585000000       jmp [rip+saved+RIP]
    90                 nop
    90                 nop
    90                 nop
    90                 nop
    90                 nop
saved:
"""
"""Bytes, and the instruction they encode (names in capitals: offsets in the saved block). The tests assemble it."""

_REGISTERS: Final = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
    "RIP",
)
SAVED: Final[dict[str, int]] = {
    **{name: 8 * index for index, name in enumerate(_REGISTERS)},
    "MASK": 136,
    "STATUS": 144,  # 4 bytes: in ah the flags that sahf takes, in al 1 where the overflow flag is set
    "DIRECTION": 148,  # 4 bytes: not 0 where the direction flag is set
}
"""Offset of each field of the saved block; all are 8 bytes but those that say otherwise."""
SAVED_SIZE: Final = 152

_OVERFLOW: Final = 1 << 11
_DIRECTION: Final = 1 << 10
_TRAP: Final = 1 << 8
_STATUS: Final = 0xD5  # SF, ZF, AF, PF, CF


def assembled(listing: str) -> tuple[bytes, dict[str, int]]:
    """The bytes that a listing holds, and where its labels are."""
    code = bytearray()
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        text = line.partition("#")[0].rstrip()
        if text.endswith(":"):
            labels[text[:-1]] = len(code)
        elif text:
            code += bytes.fromhex(text.split()[0])
    return bytes(code), labels


CODE: Final = assembled(LISTING)[0]
"""To be laid out at a multiple of 8, the saved block right behind it."""


def saved(registers: Registers, mask: int) -> bytes:
    """The block for a thread that is to get back `registers` and the signal mask `mask` (bit 0 is signal 1)."""
    flags = registers.eflags
    status = (flags & _STATUS) << 8 | bool(flags & _OVERFLOW)
    values = [getattr(registers, name.lower()) for name in _REGISTERS]
    return struct.pack("<18QII", *values, mask, status, flags & _DIRECTION)


def working_flags(registers: Registers) -> int:
    """The flags with which the thread works meanwhile: its own, where `way_back` does not restore them."""
    return registers.eflags & ~(_STATUS | _OVERFLOW | _DIRECTION | _TRAP)
