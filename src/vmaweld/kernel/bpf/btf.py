# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the running kernel keeps a field: byte offsets read from its own type information (BTF).

The kernel publishes its C types in /sys/kernel/btf/vmlinux (``CONFIG_DEBUG_INFO_BTF``; the format is in the kernel's
``Documentation/bpf/btf.rst``). Only what a BPF program over VMAs needs is read here: the id of a function, the
offset of a member, through anonymous structs and unions and dotted paths.
"""

import struct
from bisect import bisect_left
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


class _Sizes(dict[int, int]):
    """The words of a type, by its info word: a kernel has some hundred different ones."""

    def __missing__(self, info: int) -> int:
        kind = info >> 24 & 31
        self[info] = 3 + _FIXED_WORDS.get(kind, 0) + _WORDS_PER_MEMBER.get(kind, 0) * (info & 0xFFFF)
        return self[info]


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
        self._types = data[header + type_off : header + type_off + type_len]
        self._strings = data[header + str_off : header + str_off + str_len]
        self._names: dict[str, int] = {}
        try:
            self._words = memoryview(self._types).cast("I")
            self._position = self._walk()
        except (IndexError, TypeError):
            raise BtfError("the kernel's type information is cut short") from None

    @classmethod
    def running_kernel(cls) -> "Btf":
        """The types of the kernel that runs here. Raises BtfError where it does not publish them."""
        try:
            return cls(VMLINUX.read_bytes())
        except OSError as error:
            raise BtfError(f"cannot read {VMLINUX}: {error.strerror}") from None

    def _walk(self) -> list[int]:
        """The position (in words) of every type by id. There are over 100,000, so this is all that is done to each."""
        words = self._words
        size = _Sizes()
        position = [-1]  # id 0 is void
        append = position.append
        at, end = 0, len(words)
        while at < end:
            append(at)
            at += size[words[at + 1]]
        return position

    def _find(self, kind: int, name: str) -> int | None:
        """The id of the first type of that kind and name: the only ones looked at are those where its name occurs."""
        offset = self._name(name)
        if offset < 0:
            return None
        wanted = struct.pack("<I", offset)
        at = self._types.find(wanted)
        while at >= 0:
            if not at % 4:
                type_id = bisect_left(self._position, at // 4)
                if (
                    type_id < len(self._position)
                    and self._position[type_id] == at // 4
                    and self._words[at // 4 + 1] >> 24 & 31 == kind
                ):
                    return type_id
            at = self._types.find(wanted, at + 1)
        return None

    def _name(self, name: str) -> int:
        """Offset of `name` in the string section, -1 where no type or member is called so."""
        if name not in self._names:
            at = self._strings.find(b"\0" + name.encode() + b"\0")
            self._names[name] = at + 1 if at >= 0 else -1
        return self._names[name]

    def function_id(self, name: str) -> int | None:
        """The type id of kernel function `name`, or None."""
        return self._find(_FUNC, name)

    def offset(self, struct_name: str, path: str) -> int | None:
        """Offset in bytes of member `path` ("a" or "a.b") of ``struct struct_name``; None where there is none."""
        type_id = self._find(_STRUCT, struct_name)
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
