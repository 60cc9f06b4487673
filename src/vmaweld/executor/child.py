# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside the sacrificial process of `executor`: system calls as told, one after the other.

It is started as a script, apart from the package, in an interpreter as small as it can be: nothing but the arena
may change its address space while it serves.

- malloc gets its memory from a heap that is grown beforehand and never again (no mmap, no trim).
- Every other hole of the address space is filled with inaccessible shared mappings of a file of its own: they merge
  with nothing, copy for nothing at fork, and leave the arena as the only place where the kernel can put a mapping
  whose address it may choose.

The first process (the zygote) only forks: each process of a program begins as its child, with an empty arena.
A process ends when the other end of its socket is closed, so nothing outlives the driver. (PR_SET_PDEATHSIG would
fire when the driver's *thread* ends, and would let grandchildren live.)

Messages: `HEADER` (count of commands, flags, bytes of data), the commands (`COMMAND`), the data; descriptors for the
children that the commands fork come with the header. The answer to each command is its result, and with
`WITH_SNAPSHOTS` the length of a snapshot and the snapshot.
"""

import _socket
import ctypes
import gc
import os
import resource
import signal
import struct
import sys
from typing import Final

HEADER: Final = struct.Struct("<III")
COMMAND: Final = struct.Struct("<HHI7Q")  # kind, length and offset of its data, then the numbers
ANSWER: Final = struct.Struct("<q")
LENGTH: Final = struct.Struct("<I")
HELLO: Final = struct.Struct("<QQ")  # address of the scratch page, whether the program break lies in the arena

WITH_SNAPSHOTS: Final = 1
WITH_FLAGS: Final = 2  # without BPF: the text of smaps, not of maps

CALL: Final = 0  # number, six arguments; data goes to the scratch page first
READ: Final = 1  # address, length
WRITE: Final = 2
FORK: Final = 3
EXIT: Final = 4
UFFD_REGISTER: Final = 5  # context, address, length, mode
UFFD_UNREGISTER: Final = 6  # context, address, length
UFFD_CLOSE: Final = 7  # context
UFFD_MOVE: Final = 8  # source, target, length
SNAPSHOT: Final = 9  # nothing but the snapshot

MOST_CHILDREN: Final = 32
"""Descriptors a message may bring."""

_PAGE: Final = 4096
_STACK_GAP: Final = 256 * _PAGE
_TASK_SIZE: Final = 0x7FFF_FFFF_F000
_HEAP: Final = 24 << 20
_FLUSH: Final = 1 << 17
_READ_SIZE: Final = 1 << 16
_VECTORS: Final = 1024
_RECORD: Final = 136  # bytes of `kernel.bpf.program.RECORD`
_EINVAL, _EAGAIN, _EFAULT = 22, 11, 14

_NR_READ, _NR_MMAP, _NR_IOCTL, _NR_PWRITE, _NR_READV, _NR_PWRITEV = 0, 9, 16, 18, 19, 296
_NR_PRCTL, _NR_UNSHARE, _NR_BPF, _NR_USERFAULTFD = 157, 272, 321, 323
_CLONE_NEWIPC: Final = 0x0800_0000
_UFFD_FLAGS: Final = 0o2000000 | 0o4000  # O_CLOEXEC | O_NONBLOCK
_UFFD_USER_MODE_ONLY: Final = 1  # 5.11
_UFFD_FEATURE_SIGBUS: Final = 1 << 7
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER, _UFFDIO_MOVE = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC028AA05

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_ulong] * 7
_errno = ctypes.get_errno


def call(number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """What system call `number` returns, or ``-errno``."""
    result: int = _syscall(number, a, b, c, d, e, f)
    return -_errno() if result == -1 else result


_scratch = ctypes.create_string_buffer(_PAGE)
_scratch_address = ctypes.addressof(_scratch)
_vectors = (ctypes.c_ulong * (2 * _VECTORS))()
_vectors_address = ctypes.addressof(_vectors)


class Served:
    """One process: its descriptors, its userfaultfds, how it shows its arena."""

    def __init__(self, low: int, high: int, program: int) -> None:
        self.low = low
        self.high = high
        self.program = program
        self.zeroes = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        self.sink = os.memfd_create("vmaweld-sink")
        self.contexts: dict[int, int] = {}
        self.link = -1
        self.iterate = ctypes.create_string_buffer(8)

    def after_fork(self) -> None:
        """A child has no userfaultfd of its own, and must not keep its parent's open; its snapshots are its own."""
        for descriptor in self.contexts.values():
            os.close(descriptor)
        self.contexts.clear()
        if self.link >= 0:
            os.close(self.link)
            self.link = -1

    def touch(self, address: int, length: int, write: bool) -> int:
        """Read or write one byte of every page, in order, as the kernel does it for read(2) and write(2).

        copy_from_user() and clear_user() fault just as an instruction of the program would, through handle_mm_fault()
        with or without the write flag, but end with EFAULT where a program would die; and a userfaultfd with
        UFFD_FEATURE_SIGBUS, as made here, answers EFAULT to them too, and never blocks. process_vm_readv(2) would not
        do: it pins pages, and so unshares a page that fork shared on a mere read. Nor would /proc/PID/mem, which
        writes to read-only memory.
        """
        page = address & -_PAGE
        end = (address + length + _PAGE - 1) & -_PAGE
        while page < end:
            count = min((end - page) // _PAGE, _VECTORS)
            if count == 1:
                done = call(_NR_READ, self.zeroes, page, 1) if write else call(_NR_PWRITE, self.sink, page, 1, 0)
            else:
                vectors = _vectors
                for index in range(count):
                    vectors[2 * index] = page + index * _PAGE
                    vectors[2 * index + 1] = 1
                if write:
                    done = call(_NR_READV, self.zeroes, _vectors_address, count)
                else:
                    done = call(_NR_PWRITEV, self.sink, _vectors_address, count, 0, 0)
            if done < 0:
                return done
            if done < count:
                return -_EFAULT
            page += count * _PAGE
        return 0

    def _ioctl(self, descriptor: int, number: int, argument: bytes) -> int:
        ctypes.memmove(_scratch, argument, len(argument))
        return call(_NR_IOCTL, descriptor, number, _scratch_address)

    def uffd_register(self, context: int, address: int, length: int, mode: int) -> int:
        """UFFDIO_REGISTER; the context is made where there is none of that number."""
        descriptor = self.contexts.get(context, -1)
        if descriptor < 0:
            descriptor = self._open_context()
            if descriptor < 0:
                return descriptor
            self.contexts[context] = descriptor
        return self._ioctl(descriptor, _UFFDIO_REGISTER, struct.pack("<QQQQ", address, length, mode, 0))

    def _open_context(self) -> int:
        """A userfaultfd, or what the kernel answers."""
        descriptor = call(_NR_USERFAULTFD, _UFFD_FLAGS | _UFFD_USER_MODE_ONLY)
        if descriptor == -_EINVAL:
            descriptor = call(_NR_USERFAULTFD, _UFFD_FLAGS)
        if descriptor < 0:
            return descriptor
        answer = self._ioctl(descriptor, _UFFDIO_API, struct.pack("<QQQ", 0xAA, _UFFD_FEATURE_SIGBUS, 0))
        if answer < 0:
            os.close(descriptor)
            return answer
        return descriptor

    def uffd_unregister(self, context: int, address: int, length: int) -> int:
        """UFFDIO_UNREGISTER; EINVAL where there is no such context."""
        descriptor = self.contexts.get(context, -1)
        if descriptor < 0:
            return -_EINVAL
        return self._ioctl(descriptor, _UFFDIO_UNREGISTER, struct.pack("<QQ", address, length))

    def uffd_close(self, context: int) -> int:
        """Close the context, where there is one."""
        descriptor = self.contexts.pop(context, -1)
        if descriptor >= 0:
            os.close(descriptor)
        return 0

    def uffd_move(self, source: int, target: int, length: int) -> int:
        """UFFDIO_MOVE through the context of the target; 0, or the errno of the page that stopped it.

        A process that has no context asks through one that is made for that: whether it is ENOENT or EINVAL is for the
        kernel to say.
        """
        if not self.contexts:
            descriptor = self._open_context()
            if descriptor < 0:
                return descriptor
            try:
                return self._move([descriptor], source, target, length)
            finally:
                os.close(descriptor)
        return self._move(list(self.contexts.values()), source, target, length)

    def _move(self, descriptors: list[int], source: int, target: int, length: int) -> int:
        result = -_EINVAL
        for descriptor in descriptors:
            moved = 0
            while moved < length or not length:
                argument = struct.pack("<QQQQq", target + moved, source + moved, length - moved, 2, 0)
                result = self._ioctl(descriptor, _UFFDIO_MOVE, argument)
                (part,) = struct.unpack_from("<q", _scratch, 32)
                if result == 0:
                    return 0
                if result != -_EAGAIN or part <= 0:
                    break
                moved += part
            if moved or result != -_EINVAL:
                break
        return result

    def snapshot(self, flags: int) -> bytes:
        """The arena: records of the BPF program, or lines of maps or smaps."""
        if self.program < 0:
            return self._text("smaps" if flags & WITH_FLAGS else "maps")
        if self.link < 0:
            info = struct.pack("<IIII", os.getpid(), 0, 0, 0)
            ctypes.memmove(ctypes.byref(_scratch, 64), info, 16)
            attributes = struct.pack("<IIIIQII", self.program, 0, 28, 0, _scratch_address + 64, 16, 0)
            ctypes.memmove(_scratch, attributes, len(attributes))
            self.link = call(_NR_BPF, 28, _scratch_address, len(attributes))
            if self.link < 0:
                raise OSError(-self.link, "BPF_LINK_CREATE")
            struct.pack_into("<II", self.iterate, 0, self.link, 0)
        iterator = call(_NR_BPF, 33, ctypes.addressof(self.iterate), 8)
        if iterator < 0:
            raise OSError(-iterator, "BPF_ITER_CREATE")
        try:
            data = os.read(iterator, _READ_SIZE)
            last = data[7::-1]
            while len(data) % _RECORD == 0:  # until the end mark of one word
                more = os.read(iterator, _READ_SIZE)
                if more[7::-1] <= last:  # the mark had no room: nothing more, or the walk begins again
                    return data
                last = more[7::-1]
                data += more
        finally:
            os.close(iterator)
        return data[:-8]

    def _text(self, name: str) -> bytes:
        descriptor = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while chunk := os.read(descriptor, _READ_SIZE):
                data += chunk
        finally:
            os.close(descriptor)
        # The fillers on both sides are always there.
        first = data.index(b"-%x " % self.low)
        start = data.find(b"\n%x" % (self.low >> 32), first) + 1
        return data[start : data.index(b"\n%x-" % self.high) + 1]


def _receive(sock: _socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for _level, _kind, data in ancillary:
        found += struct.unpack(f"<{len(data) // 4}i", data)
    return found


def serve(served: Served, sock: _socket.socket) -> None:
    """Answer messages until the other end is closed. Never returns."""
    space = _socket.CMSG_SPACE(4 * MOST_CHILDREN)
    while True:
        header, ancillary, _flags, _address = sock.recvmsg(HEADER.size, space)
        if not header:
            os._exit(0)
        if len(header) < HEADER.size:
            header += _receive(sock, HEADER.size - len(header))
        count, flags, size = HEADER.unpack(header)
        commands = _receive(sock, count * COMMAND.size)
        data = _receive(sock, size)
        sock = _perform(served, sock, commands, data, flags, _descriptors(ancillary))


def _perform(
    served: Served, sock: _socket.socket, commands: bytes, data: bytes, flags: int, children: list[int]
) -> _socket.socket:
    """Do the commands and send the answers. Returns the socket to go on with: another one in a forked child."""
    answers = bytearray()
    for kind, length, offset, a, b, c, d, e, f, g in COMMAND.iter_unpack(commands):
        if kind == CALL:
            if length:
                ctypes.memmove(_scratch, data[offset : offset + length], length)
            result: int = _syscall(a, b, c, d, e, f, g)
            if result == -1:
                result = -_errno()
        elif kind <= WRITE:
            result = served.touch(a, b, kind == WRITE)
        elif kind == FORK:
            channel = children.pop(0)
            # The parent waits until the child has dropped its copies: else closing a userfaultfd would not end it.
            dropped, drop = os.pipe()
            try:
                result = os.fork()
            except OSError as error:
                result = -(error.errno or _EINVAL)
            if result == 0:
                sock.close()
                for other in children:
                    os.close(other)
                served.after_fork()
                os.close(dropped)
                os.close(drop)
                return _socket.socket(fileno=channel)
            os.close(drop)
            os.read(dropped, 1)
            os.close(dropped)
            os.close(channel)
        elif kind == EXIT:
            answers += ANSWER.pack(0)
            if flags & WITH_SNAPSHOTS:
                answers += LENGTH.pack(0)
            sock.sendall(answers)
            os._exit(0)
        elif kind == SNAPSHOT:
            result = 0
        elif kind == UFFD_REGISTER:
            result = served.uffd_register(a, b, c, d)
        elif kind == UFFD_UNREGISTER:
            result = served.uffd_unregister(a, b, c)
        elif kind == UFFD_CLOSE:
            result = served.uffd_close(a)
        else:
            result = served.uffd_move(a, b, c)
        answers += ANSWER.pack(result)
        if flags & WITH_SNAPSHOTS:
            shown = served.snapshot(flags)
            answers += LENGTH.pack(len(shown))
            answers += shown
            if len(answers) > _FLUSH:
                sock.sendall(answers)
                answers.clear()
    sock.sendall(answers)
    return sock


def _fill(low: int, high: int) -> None:
    """Map every hole of the address space but the arena."""
    with open("/proc/sys/vm/mmap_min_addr", "rb") as file:
        free = max(int(file.read()), 65536)
    file_of_fillers = os.memfd_create("vmaweld-filler")
    holes: list[tuple[int, int]] = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(b" ", 1)[0].split(b"-"))
            if start >= _TASK_SIZE:
                continue
            # Nothing is ever put into the gap below a stack, and the stack may need it.
            holes.append((free, start - _STACK_GAP if b"[stack]" in line else start))
            free = end
    holes.append((free, _TASK_SIZE))
    for start, end in holes:
        if start < high and end > low:
            if start > low or end < high:
                raise OSError(_EINVAL, f"something is mapped in the arena {low:#x}-{high:#x}")
            pieces = [(start, low), (high, end)]
        else:
            pieces = [(start, end)]
        for first, last in pieces:
            if first < last:
                # MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, PROT_NONE
                result = call(_NR_MMAP, first, last - first, 0, 0x10_4001, file_of_fillers, 0)
                if result != first:
                    raise OSError(-result, f"cannot fill {first:#x}-{last:#x}")
    os.close(file_of_fillers)


def _grow_heap() -> None:
    _libc.mallopt(-4, 0)  # M_MMAP_MAX
    _libc.mallopt(-1, 0x7FFF_FFFF)  # M_TRIM_THRESHOLD
    _libc.malloc.restype = ctypes.c_void_p
    _libc.malloc.argtypes = [ctypes.c_size_t]
    _libc.free.argtypes = [ctypes.c_void_p]
    _libc.free(_libc.malloc(_HEAP))


def _move_break(address: int) -> bool:
    """Let the program break begin at `address`: malloc does not use it any more.

    PR_SET_MM_MAP sets all borders at once and needs no privilege, only CONFIG_CHECKPOINT_RESTORE.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = [b"", b"", *file.read().rpartition(b")")[2].split()]  # proc(5) counts from 1
    code_stack = [int(field) for field in fields[25:28]]
    data_to_env = [int(field) for field in fields[44:51]]
    start_data, end_data, _start_brk, *arguments = data_to_env
    start_code, end_code, start_stack = code_stack
    borders = (start_code, end_code, start_data, end_data, address, address, start_stack, *arguments)
    described = struct.pack("<11QQII", *borders, 0, 0, 0xFFFF_FFFF)
    ctypes.memmove(_scratch, described, len(described))
    set_mm, set_mm_map = 35, 14
    return call(_NR_PRCTL, set_mm, set_mm_map, _scratch_address, len(described)) == 0


def main(arguments: list[str]) -> None:
    """The zygote. Arguments: control socket, BPF program or -1, first and last address of the arena, break or 0."""
    control, program, low, high, break_at = (int(argument) for argument in arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps for us
    call(_NR_PRCTL, 36, 1)  # PR_SET_CHILD_SUBREAPER: and not only our own children
    call(_NR_UNSHARE, _CLONE_NEWIPC)  # with privilege, System V segments go when we go
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    served = Served(low, high, program)
    sock = _socket.socket(fileno=control)
    gc.disable()
    _grow_heap()
    _fill(low, high)
    moved = _move_break(break_at) if break_at else False
    sock.sendall(HELLO.pack(_scratch_address, moved))
    space = _socket.CMSG_SPACE(4)
    while True:
        request, ancillary, _flags, _address = sock.recvmsg(1, space)
        if not request:
            os._exit(0)
        (channel,) = _descriptors(ancillary)
        pid = os.fork()
        if pid == 0:
            sock.close()
            serve(served, _socket.socket(fileno=channel))
        os.close(channel)
        sock.sendall(ANSWER.pack(pid))


if __name__ == "__main__":
    main(sys.argv[1:])
