# SPDX-License-Identifier: GPL-2.0-or-later
"""The batch machine: a few hundred bytes of x86-64 code that work off an array of system calls.

The code runs inside the process whose memory is welded: as a function where a process welds its own, or as the
excursion of a stopped thread where the weld comes from outside. It is position independent, touches general registers
only (system calls leave the others alone) and, as an excursion, needs no stack. The header, `HEADER_AT` past the start
of the code, is the journal: at any moment it tells where the machine is and how far the pages are.

An excursion ends by itself: it waits to be fetched, and if the welder dies, `way_back` puts every register back and
the thread goes on where it was. So nothing hangs on the welder staying alive; docs/welding.md tells the whole of it.

An entry is twelve words: op, number, six arguments, one byte of mode an argument, the entry to go to on failure (0: the
next), what the call answered, and `extra`. MOVE keeps the structure of its ioctl in the first five arguments, the
offset W at which its piece begins in the mode word, and in `extra` how far V has come.
"""

from typing import Final

from vmaweld.welding import way_back

CODE_SIZE: Final = 4096
SAVED_AT: Final = CODE_SIZE
"""Where the block of saved registers lies, right behind the code."""
HEADER_AT: Final = SAVED_AT + (way_back.SAVED_SIZE + 63 & -64)
"""Where the header lies, which is the journal."""
ENTRY_SIZE: Final = 96
WORDS: Final = 12

# The words of an entry.
OP: Final = 0
NUMBER: Final = 1
ARGUMENTS: Final = 2
MODES: Final = 8
ON_ERROR: Final = 9
RESULT: Final = 10
EXTRA: Final = 11

END: Final = 0
CALL: Final = 1  # number: the system call; its arguments
CONTROL: Final = 2  # number: the request; ioctl(fd, request, the arguments as one structure)
MOVE: Final = 3  # number: UFFDIO_MOVE; the arguments are its structure
STORE: Final = 4  # number: an address; writes the first argument there
SET: Final = 5  # V = the first argument, W = the second
JUMP: Final = 6  # to the on-failure entry
EQUAL: Final = 7  # to the on-failure entry where the first two arguments are equal

# Bits of a mode byte: the argument is itself, or what lies at that address; then V and W added or taken off.
PLUS_V: Final = 1
MINUS_V: Final = 2
PLUS_W: Final = 4
MINUS_W: Final = 8
LOAD: Final = 16

# The header. MAGIC and VERSION are for whoever finds it later.
MAGIC: Final = b"vmaweld\x01"
VERSION: Final = 2
MARK: Final = MAGIC + VERSION.to_bytes(8, "little")
"""How the header of this version begins."""
HEADER: Final[dict[str, int]] = {
    "MAGIC": 0,
    "VERSION": 8,
    "STATE": 16,  # 4 bytes, a futex
    "PC": 24,
    "V": 32,
    "W": 40,
    "FD": 48,
    "ERRORS": 56,
    "ALL_SIGNALS": 64,
    "PATIENCE": 80,  # struct timeval
    "ARGUMENTS": 96,
    "STUCK": 288,  # the entry that failed and has no other way, 0 for none
    "FAILED": 296,  # the entry that failed last
    "ALIVE": 496,  # what OWNER holds while the welder lives
    "OWNER": 504,  # 4 bytes, a robust futex, which holds the thread id of the welder
}
"""Offset of each field; all are 8 bytes but those that say otherwise."""
HEADER_SIZE: Final = 512
"""Bytes before the first entry."""

NO_FD: Final = (1 << 32) - 1
"""FD where there is no userfaultfd."""

# STATE
READY: Final = 0
RUNNING: Final = 1
FINISHED: Final = 2
LEFT: Final = 3

LISTING: Final = """
# -- As a function: `void run(void *header)`, for the caller's own process.
call_entry:
    53                 push rbx
    55                 push rbp
    4154               push r12
    4155               push r13
    4156               push r14
    4157               push r15
    4889fb             mov rbx, rdi
    4c8d3d02000000     lea r15, [rip+returned]
    eb2a               jmp run
returned:
    415f               pop r15
    415e               pop r14
    415d               pop r13
    415c               pop r12
    5d                 pop rbp
    5b                 pop rbx
    c3                 ret
# -- As an excursion of a thread that was stopped anywhere: rbx = header, rsp the thread's own.
# -- All signals wait until it is over: a handler that touched a page on its way would wait for this very thread.
excursion:
    b80e000000         mov eax, 14  # rt_sigprocmask(SIG_SETMASK, all, NULL, 8)
    bf02000000         mov edi, 2
    488d7340           lea rsi, [rbx+ALL_SIGNALS]
    31d2               xor edx, edx
    41ba08000000       mov r10d, 8
    0f05               syscall
    4c8d3d9f010000     lea r15, [rip+finished]
run:
    c7431001000000     mov dword ptr [rbx+STATE], 1  # RUNNING
    4c8b6320           mov r12, [rbx+V]
    4c8b6b28           mov r13, [rbx+W]
    488b6b18           mov rbp, [rbx+PC]
step:
    48896b18           mov [rbx+PC], rbp  # the journal: where we are, and how far the pages are
    4c896320           mov [rbx+V], r12
    4c896b28           mov [rbx+W], r13
    8b4500             mov eax, [rbp]
    83f803             cmp eax, 3
    0f8410010000       je move
    31c9               xor ecx, ecx
evaluate:  # six arguments, each: itself or what lies there, + V, - V, + W, - W
    488b54cd10         mov rdx, [rbp+rcx*8+16]
    408a740d40         mov sil, [rbp+rcx+64]
    40f6c610           test sil, 16
    7403               jz plus_v
    488b12             mov rdx, [rdx]
plus_v:
    40f6c601           test sil, 1
    7403               jz minus_v
    4c01e2             add rdx, r12
minus_v:
    40f6c602           test sil, 2
    7403               jz plus_w
    4c29e2             sub rdx, r12
plus_w:
    40f6c604           test sil, 4
    7403               jz minus_w
    4c01ea             add rdx, r13
minus_w:
    40f6c608           test sil, 8
    7403               jz evaluated
    4c29ea             sub rdx, r13
evaluated:
    488954cb60         mov [rbx+rcx*8+ARGUMENTS], rdx
    ffc1               inc ecx
    83f906             cmp ecx, 6
    75bd               jne evaluate
    83f801             cmp eax, 1
    7433               je call
    83f802             cmp eax, 2
    7454               je control
    83f804             cmp eax, 4
    0f848e000000       je store
    83f805             cmp eax, 5
    0f8492000000       je set
    83f806             cmp eax, 6
    0f849d000000       je jump
    83f807             cmp eax, 7
    0f848a000000       je equal
    c7431002000000     mov dword ptr [rbx+STATE], 2  # END: FINISHED
    41ffe7             jmp r15
call:  # CALL number, six arguments
    488b4508           mov rax, [rbp+8]
    488b7b60           mov rdi, [rbx+ARGUMENTS]
    488b7368           mov rsi, [rbx+ARGUMENTS+8]
    488b5370           mov rdx, [rbx+ARGUMENTS+16]
    4c8b5378           mov r10, [rbx+ARGUMENTS+24]
    4c8b8380000000     mov r8, [rbx+ARGUMENTS+32]
    4c8b8b88000000     mov r9, [rbx+ARGUMENTS+40]
    0f05               syscall
    eb12               jmp judge
control:  # CONTROL request: ioctl(fd, request, the arguments as a structure)
    b810000000         mov eax, 16
    8b7b30             mov edi, [rbx+FD]
    488b7508           mov rsi, [rbp+8]
    488d5360           lea rdx, [rbx+ARGUMENTS]
    0f05               syscall
judge:
    48894550           mov [rbp+80], rax
    483d01f0ffff       cmp rax, -4095
    7309               jae failed
next:
    4883c560           add rbp, 96
    e91effffff         jmp step
failed:
    48ff4338           inc qword ptr [rbx+ERRORS]
    4889ab28010000     mov [rbx+FAILED], rbp
    488b4d48           mov rcx, [rbp+72]
    4885c9             test rcx, rcx
    74e3               jz next
    4889cd             mov rbp, rcx
    e902ffffff         jmp step
store:  # STORE address, value
    488b4d08           mov rcx, [rbp+8]
    488b5360           mov rdx, [rbx+ARGUMENTS]
    488911             mov [rcx], rdx
    ebce               jmp next
set:  # SET V, W
    4c8b6360           mov r12, [rbx+ARGUMENTS]
    4c8b6b68           mov r13, [rbx+ARGUMENTS+8]
    ebc4               jmp next
equal:  # EQUAL a, b: jump where they are
    488b5360           mov rdx, [rbx+ARGUMENTS]
    483b5368           cmp rdx, [rbx+ARGUMENTS+8]
    75ba               jne next
jump:  # JUMP
    488b6d48           mov rbp, [rbp+72]
    e9d8feffff         jmp step
move:  # MOVE: UFFDIO_MOVE on the entry's own structure, as often as it takes
    41be00100000       mov r14d, 4096  # times that nothing at all may move
    4c8b6d40           mov r13, [rbp+64]
    4c8b6558           mov r12, [rbp+88]
again:
    b810000000         mov eax, 16
    8b7b30             mov edi, [rbx+FD]
    488b7508           mov rsi, [rbp+8]
    488d5510           lea rdx, [rbp+16]
    0f05               syscall
    48894550           mov [rbp+80], rax
    4885c0             test rax, rax
    742e               jz moved
    4883f8f5           cmp rax, -11  # EAGAIN: part of it, or nothing, moved
    758b               jne failed
    488b4d30           mov rcx, [rbp+48]
    4885c9             test rcx, rcx
    7e15               jle nothing
    48014d10           add [rbp+16], rcx
    48014d18           add [rbp+24], rcx
    48294d20           sub [rbp+32], rcx
    4901cc             add r12, rcx
    4c896558           mov [rbp+88], r12
    ebc1               jmp again
nothing:
    41ffce             dec r14d
    75bc               jnz again
    e963ffffff         jmp failed
moved:
    4c036520           add r12, [rbp+32]
    4c896558           mov [rbp+88], r12
    e94dffffff         jmp next
finished:
    b8ca000000         mov eax, 202  # futex(&STATE, FUTEX_WAKE, all): the welder sleeps there
    488d7b10           lea rdi, [rbx+STATE]
    be01000000         mov esi, 1
    baffffff7f         mov edx, 0x7fffffff
    0f05               syscall
    b8ca000000         mov eax, 202  # futex(&OWNER, FUTEX_WAIT, ALIVE, NULL): until it fetches us, or dies
    488dbbf8010000     lea rdi, [rbx+OWNER]
    31f6               xor esi, esi
    8b93f0010000       mov edx, [rbx+ALIVE]
    4531d2             xor r10d, r10d
    0f05               syscall
    b817000000         mov eax, 23  # select(0, NULL, NULL, NULL, &PATIENCE): time for another one to fetch us
    31ff               xor edi, edi
    31f6               xor esi, esi
    31d2               xor edx, edx
    4531d2             xor r10d, r10d
    4c8d4350           lea r8, [rbx+PATIENCE]
    0f05               syscall
    c7431003000000     mov dword ptr [rbx+STATE], 3  # LEFT: nobody came, so back to where the thread was, by ourselves
    e92b0d0000         jmp way_back
"""
"""Bytes, and the instruction they encode (names in capitals: offsets in the header). The tests assemble it anew."""


MACHINE, LABELS = way_back.assembled(LISTING)
CODE: Final = MACHINE.ljust(CODE_SIZE - len(way_back.CODE), b"\x90") + way_back.CODE
"""A page: the machine, and at its end the way back of an excursion, which reads `SAVED_AT`."""
CALL_ENTRY: Final = LABELS["call_entry"]
EXCURSION: Final = LABELS["excursion"]


def header(pc: int, *, alive: int = 0, patience_us: int = 100_000) -> bytes:
    """The header of a run that begins at the entry at address `pc`, up to its field OWNER, which outlives runs.

    alive: what the word OWNER holds while the welder lives; 0 where there is none.
    patience_us: of an excursion, so many microseconds it waits at its end to be fetched by another welder.
    """
    fields = {
        "MAGIC": int.from_bytes(MAGIC, "little"),
        "VERSION": VERSION,
        "STATE": READY,
        "PC": pc,
        "FD": NO_FD,
        "ALL_SIGNALS": (1 << 64) - 1,
        "ALIVE": alive,
        "PATIENCE": patience_us // 1_000_000,
    }
    data = bytearray(HEADER["OWNER"])
    for name, value in fields.items():
        data[HEADER[name] : HEADER[name] + 8] = value.to_bytes(8, "little")
    at = HEADER["PATIENCE"] + 8
    data[at : at + 8] = (patience_us % 1_000_000).to_bytes(8, "little")
    return bytes(data)
