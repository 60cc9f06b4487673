# SPDX-License-Identifier: GPL-2.0-or-later
"""The BPF program behind exact snapshots: some hundred instructions, put together when they are needed.

The program runs once for every VMA the kernel's ``task_vma`` iterator meets and writes one record of 64-bit words
(`RECORD`). It is assembled here, with the field offsets of the kernel that runs (`btf`), in place of being compiled
beforehand and relocated by libbpf: nothing has to be built, shipped or found on the user's machine, a field that a
release lacks (``anon_name``, ``mm_lock_seq``, ...) simply reads as 0, and the verifier checks every load against the
kernel's own types.

Instruction encoding: the kernel's ``Documentation/bpf/standardization/instruction-set.rst``.
"""

import struct
from typing import Final

from vmaweld.kernel.bpf.btf import Btf, BtfError

ITERATOR: Final = "bpf_iter_task_vma"

# The words of a record.
START: Final = 0
END: Final = 1
FLAGS: Final = 2
PGOFF: Final = 3
ANON_VMA: Final = 4
BITS: Final = 5  # chain | kind << 8 | has close << 16 | has policy << 24 | policy mode << 32 | policy flags << 48
FILE: Final = 6
INODE: Final = 7
DEVICE: Final = 8
UFFD: Final = 9
NODES: Final = 10
ROOT: Final = 11
PARENT: Final = 12
CHILDREN: Final = 13
ACTIVE: Final = 14
MM: Final = 15
SEQUENCE: Final = 16  # map_count | mm_lock_seq << 32
WORDS: Final = 17
RECORD: Final = struct.Struct(f"<{WORDS}Q")

NAME_TAG: Final = (1 << 64) - 1
"""First word of a record that holds, from its second word on, the NUL-ended name of the VMA before it."""
NAME_BYTES: Final = RECORD.size - 8

END_MARK: Final = 1
"""The one word written where the walk ends: the iterator, asked for one task, would begin again if it were read on."""

KIND_NONE: Final = 0
KIND_HEAP: Final = 1
KIND_STACK: Final = 2
KIND_SPECIAL: Final = 3  # vdso and its like; a name record follows
KIND_NAMED: Final = 4  # prctl(PR_SET_VMA_ANON_NAME); a name record follows

CHAIN_LIMIT: Final = 255
"""Chains are counted up to here: the verifier wants a bound."""

READER: Final = -1
"""In place of a pid: the process that reads the iterator."""

_GET_CURRENT_PID_TGID: Final = 14
_PROBE_READ_KERNEL: Final = 113
_SEQ_WRITE: Final = 127
_PROBE_READ_KERNEL_STR: Final = 115

_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9, _FP = range(11)
_MM, _SEQ, _KIND = _R8, _R9, _R6

_LOAD: Final = {8: 0x79, 4: 0x61, 2: 0x69}
_ALWAYS, _EQ, _GT, _GE, _NE, _LT, _LE = 0x00, 0x10, 0x20, 0x30, 0x50, 0xA0, 0xB0


class _Assembler:
    """Instructions in order, jumps by label."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def _emit(self, opcode: int, dst: int, src: int, offset: int, immediate: int) -> None:
        self._code.append((opcode, dst, src, offset, immediate))

    def load(self, dst: int, src: int, offset: int, size: int = 8) -> None:
        """Emit dst = *(u64, u32 or u16 *)(src + offset)."""
        self._emit(_LOAD[size], dst, src, offset, 0)

    def store(self, word: int, src: int) -> None:
        """Emit record[word] = src."""
        self._emit(0x7B, _FP, src, word * 8 - RECORD.size, 0)

    def store_constant(self, word: int, value: int) -> None:
        """Emit record[word] = value, a signed 32-bit constant (sign extended)."""
        self._emit(0x7A, _FP, 0, word * 8 - RECORD.size, value)

    def move(self, dst: int, src: int) -> None:
        """Emit dst = src."""
        self._emit(0xBF, dst, src, 0, 0)

    def set(self, dst: int, value: int) -> None:
        """Emit dst = value, any 64-bit constant."""
        self._emit(0x18, dst, 0, 0, value & 0xFFFF_FFFF)
        self._emit(0, 0, 0, 0, value >> 32)

    def add(self, dst: int, value: int) -> None:
        """Emit dst += value."""
        self._emit(0x07, dst, 0, 0, value)

    def shift_left(self, dst: int, bits: int) -> None:
        """Emit dst <<= bits."""
        self._emit(0x67, dst, 0, 0, bits)

    def shift_right(self, dst: int, bits: int) -> None:
        """Emit dst >>= bits."""
        self._emit(0x77, dst, 0, 0, bits)

    def or_register(self, dst: int, src: int) -> None:
        """Emit dst |= src."""
        self._emit(0x4F, dst, src, 0, 0)

    def or_constant(self, dst: int, value: int) -> None:
        """Emit dst |= value."""
        self._emit(0x47, dst, 0, 0, value)

    def jump(self, label: str) -> None:
        """Go to `label`."""
        self._jumps.append((len(self._code), label))
        self._emit(0x05, 0, 0, 0, 0)

    def jump_if(self, condition: int, dst: int, value: int, label: str) -> None:
        """Go to `label` if `dst` stands in `condition` to the constant `value`."""
        self._jumps.append((len(self._code), label))
        self._emit(0x05 | condition, dst, 0, 0, value)

    def jump_if_register(self, condition: int, dst: int, src: int, label: str) -> None:
        """Go to `label` if `dst` stands in `condition` to `src`."""
        self._jumps.append((len(self._code), label))
        self._emit(0x0D | condition, dst, src, 0, 0)

    def call(self, helper: int) -> None:
        """Emit r0 = helper(r1 .. r5)."""
        self._emit(0x85, 0, 0, 0, helper)

    def exit(self) -> None:
        """Return r0."""
        self._emit(0x95, 0, 0, 0, 0)

    def label(self, name: str) -> None:
        """What comes next is called `name`."""
        self._labels[name] = len(self._code)

    def encode(self) -> bytes:
        """The program as the kernel takes it."""
        offsets = {at: self._labels[label] - at - 1 for at, label in self._jumps}
        return b"".join(
            struct.pack("<BBhI", opcode, src << 4 | dst, offsets.get(at, offset), immediate & 0xFFFF_FFFF)
            for at, (opcode, dst, src, offset, immediate) in enumerate(self._code)
        )


def _need(btf: Btf, struct_name: str, path: str) -> int:
    offset = btf.offset(struct_name, path)
    if offset is None:
        raise BtfError(f"this kernel has no {struct_name}.{path}")
    return offset


def takes_one_task(btf: Btf) -> bool:
    """Whether the iterator can be told to walk one task alone (since 6.1): before, it walks all of the system's."""
    return btf.offset("bpf_iter_seq_task_common", "pid") is not None


def assemble(btf: Btf, low: int = 0, high: int = 1 << 63, pid: int = 0) -> bytes:
    """The program that writes a record for every VMA that overlaps ``[low, high)``.

    pid: passes over all tasks but that process (0: over none; READER: all but the one that reads), by its number in
        the initial pid namespace.
    Raises BtfError where this kernel lacks a field that every supported one (5.17 to 7.x) has.
    """
    asm = _Assembler()
    vma = _R7

    def field(path: str) -> int:
        return _need(btf, "vm_area_struct", path)

    asm.load(_R2, _R1, 0)
    asm.load(_SEQ, _R2, _need(btf, "bpf_iter_meta", "seq"))
    asm.load(vma, _R1, 16)  # struct bpf_iter__task_vma { meta, task, vma }
    asm.jump_if(_EQ, vma, 0, "end of walk")
    if pid:
        task = _R6
        asm.load(task, _R1, 8)
        asm.jump_if(_EQ, task, 0, "exit")
        if pid == READER:
            asm.call(_GET_CURRENT_PID_TGID)
            asm.shift_right(_R0, 32)
        else:
            asm.set(_R0, pid)
        asm.load(_R2, task, _need(btf, "task_struct", "tgid"), 4)
        asm.jump_if_register(_NE, _R2, _R0, "exit")
    asm.load(_R2, vma, field("vm_end"))
    asm.set(_R1, low)
    asm.jump_if_register(_LE, _R2, _R1, "exit")
    asm.store(END, _R2)
    asm.load(_R2, vma, field("vm_start"))
    asm.set(_R1, high)
    asm.jump_if_register(_GE, _R2, _R1, "exit")
    asm.store(START, _R2)
    asm.load(_R1, vma, field("vm_flags"))
    asm.store(FLAGS, _R1)
    asm.load(_R1, vma, field("vm_pgoff"))
    asm.store(PGOFF, _R1)
    asm.set(_KIND, KIND_NONE)

    _anon_vma(asm, btf)
    _chain(asm, btf)  # leaves the count in r4, and BITS is built up in r5 from here on
    asm.move(_R5, _R4)
    _operations(asm, btf)
    _file(asm, btf)
    _policy(asm, btf)
    _uffd(asm, btf)

    asm.load(_MM, vma, field("vm_mm"))
    asm.store(MM, _MM)
    asm.load(_R1, _MM, _need(btf, "mm_struct", "map_count"), 4)
    sequence = btf.offset("mm_struct", "mm_lock_seq")  # since 6.4
    if sequence is not None:
        asm.load(_R2, _MM, sequence, 4)
        asm.shift_left(_R2, 32)
        asm.or_register(_R1, _R2)
    asm.store(SEQUENCE, _R1)

    _kind(asm, btf)
    asm.move(_R1, _KIND)
    asm.shift_left(_R1, 8)
    asm.or_register(_R5, _R1)
    asm.store(BITS, _R5)
    _write(asm, RECORD.size)
    _name(asm, btf)
    asm.label("end of walk")
    asm.store_constant(START, END_MARK)
    _write(asm, 8)
    asm.label("exit")
    asm.set(_R0, 0)
    asm.exit()
    return asm.encode()


def _anon_vma(asm: _Assembler, btf: Btf) -> None:
    fields = ((ROOT, "root"), (PARENT, "parent"), (CHILDREN, "num_children"), (ACTIVE, "num_active_vmas"))
    asm.load(_R2, _R7, _need(btf, "vm_area_struct", "anon_vma"))
    asm.store(ANON_VMA, _R2)
    asm.jump_if(_EQ, _R2, 0, "no anon_vma")
    for word, name in fields:
        asm.load(_R1, _R2, _need(btf, "anon_vma", name))
        asm.store(word, _R1)
    asm.jump("anon_vma done")
    asm.label("no anon_vma")
    for word, _name in fields:
        asm.store_constant(word, 0)
    asm.label("anon_vma done")


def _chain(asm: _Assembler, btf: Btf) -> None:
    head = _need(btf, "vm_area_struct", "anon_vma_chain")
    asm.move(_R3, _R7)
    asm.add(_R3, head)
    asm.load(_R2, _R7, head)  # list_head.next is its first member
    asm.set(_R4, 0)
    asm.label("next chain")
    asm.jump_if_register(_EQ, _R2, _R3, "chain done")
    asm.jump_if(_GE, _R4, CHAIN_LIMIT, "chain done")
    asm.add(_R4, 1)
    asm.load(_R2, _R2, 0)
    asm.jump("next chain")
    asm.label("chain done")


def _operations(asm: _Assembler, btf: Btf) -> None:
    asm.load(_R1, _R7, _need(btf, "vm_area_struct", "vm_ops"))
    asm.jump_if(_EQ, _R1, 0, "no vm_ops")
    asm.set(_KIND, KIND_SPECIAL)  # holds unless a file is found: only special mappings have vm_ops and no file
    asm.load(_R2, _R1, _need(btf, "vm_operations_struct", "close"))
    asm.jump_if(_EQ, _R2, 0, "no vm_ops")
    asm.or_constant(_R5, 1 << 16)
    asm.label("no vm_ops")


def _file(asm: _Assembler, btf: Btf) -> None:
    asm.store_constant(INODE, 0)
    asm.store_constant(DEVICE, 0)
    asm.load(_R1, _R7, _need(btf, "vm_area_struct", "vm_file"))
    asm.jump_if(_EQ, _R1, 0, "no file")
    asm.set(_KIND, KIND_NONE)
    asm.load(_R2, _R1, _need(btf, "file", "f_inode"))
    asm.load(_R3, _R2, _need(btf, "inode", "i_ino"))
    asm.store(INODE, _R3)
    asm.load(_R2, _R2, _need(btf, "inode", "i_sb"))
    asm.load(_R2, _R2, _need(btf, "super_block", "s_dev"), 4)
    asm.store(DEVICE, _R2)
    asm.label("no file")
    asm.store(FILE, _R1)


def _policy(asm: _Assembler, btf: Btf) -> None:
    asm.store_constant(NODES, 0)
    policy = btf.offset("vm_area_struct", "vm_policy")  # CONFIG_NUMA
    if policy is None:
        return
    asm.load(_R1, _R7, policy)
    asm.jump_if(_EQ, _R1, 0, "no policy")
    asm.or_constant(_R5, 1 << 24)
    asm.load(_R2, _R1, _need(btf, "mempolicy", "mode"), 2)
    asm.shift_left(_R2, 32)
    asm.or_register(_R5, _R2)
    asm.load(_R2, _R1, _need(btf, "mempolicy", "flags"), 2)
    asm.shift_left(_R2, 48)
    asm.or_register(_R5, _R2)
    asm.load(_R2, _R1, _need(btf, "mempolicy", "nodes"))
    asm.store(NODES, _R2)
    asm.label("no policy")


def _uffd(asm: _Assembler, btf: Btf) -> None:
    context = btf.offset("vm_area_struct", "vm_userfaultfd_ctx.ctx")  # CONFIG_USERFAULTFD
    if context is None:
        asm.store_constant(UFFD, 0)
        return
    asm.load(_R1, _R7, context)
    asm.store(UFFD, _R1)


def _kind(asm: _Assembler, btf: Btf) -> None:
    """What fs/proc/task_mmu.c calls the VMA, in its order: file, vm_ops->name, heap, stack, anonymous name."""
    asm.jump_if(_EQ, _KIND, KIND_SPECIAL, "kind done")
    asm.load(_R1, _R7, _need(btf, "vm_area_struct", "vm_file"))
    asm.jump_if(_EQ, _R1, 0, "no file to name")
    anon_name = btf.offset("vm_area_struct", "anon_name")  # since 5.17, CONFIG_ANON_VMA_NAME
    # Until 6.2 the name of an anonymous VMA shares its bytes with the file's tree node: only anonymous VMAs have one.
    shares_bytes = anon_name is not None and anon_name == btf.offset("vm_area_struct", "shared")
    if anon_name is not None and not shares_bytes:
        asm.load(_R1, _R7, anon_name)
        asm.jump_if(_EQ, _R1, 0, "kind done")
        asm.set(_KIND, KIND_NAMED)
    asm.jump("kind done")
    asm.label("no file to name")
    asm.load(_R3, _R7, _need(btf, "vm_area_struct", "vm_start"))
    asm.load(_R4, _R7, _need(btf, "vm_area_struct", "vm_end"))
    asm.load(_R1, _MM, _need(btf, "mm_struct", "brk"))
    asm.jump_if_register(_GE, _R3, _R1, "no heap")
    asm.load(_R1, _MM, _need(btf, "mm_struct", "start_brk"))
    asm.jump_if_register(_LE, _R4, _R1, "no heap")
    asm.set(_KIND, KIND_HEAP)
    asm.jump("kind done")
    asm.label("no heap")
    asm.load(_R1, _MM, _need(btf, "mm_struct", "start_stack"))
    asm.jump_if_register(_GT, _R3, _R1, "no stack")
    asm.jump_if_register(_LT, _R4, _R1, "no stack")
    asm.set(_KIND, KIND_STACK)
    asm.jump("kind done")
    asm.label("no stack")
    if anon_name is not None:
        asm.load(_R1, _R7, anon_name)
        asm.jump_if(_EQ, _R1, 0, "kind done")
        asm.set(_KIND, KIND_NAMED)
    asm.label("kind done")


def _write(asm: _Assembler, size: int) -> None:
    asm.move(_R1, _SEQ)
    asm.move(_R2, _FP)
    asm.add(_R2, -RECORD.size)
    asm.set(_R3, size)
    asm.call(_SEQ_WRITE)


def _name(asm: _Assembler, btf: Btf) -> None:
    asm.jump_if(_EQ, _KIND, KIND_SPECIAL, "special name")
    asm.jump_if(_EQ, _KIND, KIND_NAMED, "anonymous name")
    asm.jump("exit")
    asm.label("special name")
    # vm_private_data of a special mapping is its struct vm_special_mapping, whose first member points to the name.
    _clear_name(asm)
    asm.load(_R3, _R7, _need(btf, "vm_area_struct", "vm_private_data"))
    asm.add(_R3, _need(btf, "vm_special_mapping", "name"))
    asm.move(_R1, _FP)
    asm.add(_R1, 8 - RECORD.size)
    asm.set(_R2, 8)
    asm.call(_PROBE_READ_KERNEL)
    asm.load(_R3, _FP, 8 - RECORD.size)
    asm.jump("read name")
    asm.label("anonymous name")
    _clear_name(asm)
    anon_name = btf.offset("vm_area_struct", "anon_name")
    if anon_name is not None:
        asm.load(_R3, _R7, anon_name)
        asm.add(_R3, _need(btf, "anon_vma_name", "name"))
    else:
        asm.set(_R3, 0)
    asm.label("read name")
    asm.move(_R1, _FP)
    asm.add(_R1, 8 - RECORD.size)
    asm.set(_R2, NAME_BYTES)
    asm.call(_PROBE_READ_KERNEL_STR)
    asm.store_constant(START, -1)  # NAME_TAG, sign extended
    _write(asm, RECORD.size)
    asm.jump("exit")


def _clear_name(asm: _Assembler) -> None:
    for word in range(1, WORDS):
        asm.store_constant(word, 0)
