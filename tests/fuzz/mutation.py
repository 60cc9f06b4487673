# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs at random, without a tool that knows what they reach: what CI runs, the same inputs each time."""

import random
from collections.abc import Sequence
from typing import Final

_LONGEST: Final = 1 << 16
_NUMBERS: Final = (0, 1, 7, 8, 15, 16, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 63)
_TOKENS: Final[dict[str, tuple[bytes, ...]]] = {
    "trace": (b"PAR1", b"vmaweld seal", b"vmaweld", b'"format": 1'),
    "perf": (b"PERFILE2", b"name: ", b"field:", b"\xff" * 8, b"\0" * 8),
    "strace": (
        *(b" <unfinished ...>", b"<... mmap resumed>", b") = 0", b") = -1 ENOMEM (x)", b"+++ exited with 0 +++"),
        *(b"\\", b'"', b"<", b">", b"{", b"}", b"[", b"]", b", ", b"\n", b"flags=", b"NULL", b"\xff", b"9" * 30),
    ),
    "scenario": (
        *(b'{"op": "mmap", "addr": "0x100000", "length": 4096, "prot": "rw", "flags": "0x32"}', b"null", b"true"),
        *(b"-1", b"1e999", b"NaN", b'"\\ud800"', b'"events"', b'"policies"', b"[", b"]", b"{", b"}", b",", b"9" * 30),
        *(b'"fork"', b'"child"', b'"place"', b'"write"', b'"mremap"', b'"new_length"', b'"pid"', b'"result"'),
    ),
}


def mutated(reader: str, chance: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of `corpus`, changed in one to six ways."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        _change(data, chance, corpus, _TOKENS[reader])
    return bytes(data[:_LONGEST])


def _change(data: bytearray, chance: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    way = chance.randrange(9)
    if way == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
    elif way == 1 and data:
        data[min(at, len(data) - 1)] = chance.randrange(256)
    elif way == 2:
        width = chance.choice((1, 2, 4, 8))
        number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
        data[at : at + width] = number.to_bytes(width, "little")
    elif way == 3:
        del data[at : at + chance.choice((1, 4, 8, 64, 1024))]
    elif way == 4:
        data[at:at] = chance.randbytes(chance.choice((1, 4, 8, 64)))
    elif way == 5:
        data[at:at] = chance.choice(tokens)
    elif way == 6:
        piece = data[at : at + chance.choice((8, 40, 200, 1000))]
        to = chance.randrange(len(data) + 1)
        data[to:to] = piece * chance.choice((1, 1, 2, 20))
    elif way == 7:
        other = chance.choice(corpus)
        begin = chance.randrange(len(other) + 1)
        data[at:at] = other[begin : begin + chance.choice((8, 64, 512))]
    else:
        token = chance.choice(tokens)
        data[at : at + len(token)] = token
