"""Where the running kernel keeps a field: byte offsets read from its own type information (BTF).

The kernel publishes its C types in /sys/kernel/btf/vmlinux (``CONFIG_DEBUG_INFO_BTF``; the format is in the kernel's
``Documentation/bpf/btf.rst``). Only what a BPF program over VMAs needs is read here: the id of a function, the
offset of a member, through anonymous structs and unions and dotted paths.
"""

import struct
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC: Final = 0xEB9F
_STRUCT: Final = 4
_UNION: Final = 5
_FUNC: Final = 12
_MODIFIERS: Final = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type_tag
# 32-bit words that follow the three of every type: fixed ones, and ones per member (`vlen`).
_FIXED_WORDS: Final = {1: 1, 3: 3, 14: 1, 17: 1}
_WORDS_PER_MEMBER: Final = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}


class BtfError(Exception):
    """The kernel's type information is missing, or not in a form this reader knows."""


class Btf:
    """The types of one kernel.

    data: the bytes of a BTF file, as in /sys/kernel/btf/vmlinux.

    >>> btf = Btf.running_kernel()                       # doctest: +SKIP
    >>> btf.offset("vm_area_struct", "vm_end")           # doctest: +SKIP
    8
    """

    def __init__(self, data: bytes) -> None:
        try:
            magic, _version, _flags, header, type_off, type_len, str_off, str_len = struct.unpack_from(
                "<HBBIIIII", data
            )
        except struct.error:
            raise BtfError("the kernel's type information is cut short") from None
        if magic != _MAGIC:
            raise BtfError("the kernel's type information is not BTF")
        types = data[header + type_off : header + type_off + type_len]
        self._strings = data[header + str_off : header + str_off + str_len]
        self._words = memoryview(types).cast("I")
        self._names: dict[str, int] = {}
        self._structs: dict[int, int] = {}
        self._functions: dict[int, int] = {}
        self._position = self._walk()

    @classmethod
    def running_kernel(cls) -> "Btf":
        """The types of the kernel that runs here. Raises BtfError where it does not publish them."""
        try:
            return cls(VMLINUX.read_bytes())
        except OSError as error:
            raise BtfError(f"cannot read {VMLINUX}: {error.strerror}") from None

    def _walk(self) -> list[int]:
        """The position (in words) of every type by id, noting structs and functions by name on the way."""
        words = self._words
        size = [3] * 32
        for kind, extra in _FIXED_WORDS.items():
            size[kind] = 3 + extra
        per_member = [_WORDS_PER_MEMBER.get(kind, 0) for kind in range(32)]
        position = [0]  # id 0 is void
        structs, functions = self._structs, self._functions
        append = position.append
        at, end = 0, len(words)
        while at < end:
            info = words[at + 1]
            kind = info >> 24 & 31
            if kind == _FUNC:
                functions.setdefault(words[at], len(position))
            elif kind == _STRUCT:
                structs.setdefault(words[at], len(position))
            append(at)
            at += size[kind] + per_member[kind] * (info & 0xFFFF)
        return position

    def _name(self, name: str) -> int:
        """Offset of `name` in the string section, -1 where no type or member is called so."""
        if name not in self._names:
            at = self._strings.find(b"\0" + name.encode() + b"\0")
            self._names[name] = at + 1 if at >= 0 else -1
        return self._names[name]

    def function_id(self, name: str) -> int | None:
        """The type id of kernel function `name`, or None."""
        return self._functions.get(self._name(name))

    def offset(self, struct_name: str, path: str) -> int | None:
        """Offset in bytes of member `path` ("a" or "a.b") of ``struct struct_name``; None where there is none."""
        type_id = self._structs.get(self._name(struct_name))
        total = 0
        for part in path.split("."):
            if type_id is None:
                return None
            found = self._member(self._resolve(type_id), self._name(part))
            if found is None:
                return None
            bits, type_id = found
            total += bits
        return total >> 3

    def _resolve(self, type_id: int) -> int:
        """`type_id` with typedefs and qualifiers taken off."""
        while (self._words[self._position[type_id] + 1] >> 24 & 31) in _MODIFIERS:
            type_id = self._words[self._position[type_id] + 2]
        return type_id

    def _member(self, type_id: int, name: int) -> tuple[int, int] | None:
        """(offset in bits, type id) of the member called `name`, looked for in anonymous members too."""
        words = self._words
        at = self._position[type_id]
        info = words[at + 1]
        if (info >> 24 & 31) not in (_STRUCT, _UNION):
            return None
        bitfields = info >> 31  # the upper 8 bits of a member's offset are then its width
        for member in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            member_name, member_type, offset = words[member], words[member + 1], words[member + 2]
            if bitfields:
                offset &= 0xFF_FFFF
            if member_name == name:
                return offset, member_type
            if member_name == 0:
                inner = self._member(self._resolve(member_type), name)
                if inner is not None:
                    return offset + inner[0], inner[1]
        return None
