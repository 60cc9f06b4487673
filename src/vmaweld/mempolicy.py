# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory policies as text, as /proc/PID/numa_maps and `Row.mempolicy` write them: ``bind:0``, ``prefer=static:0-1``."""

from typing import Final

MODES: Final = ("", "prefer", "bind", "interleave", "local", "prefer-many", "weighted-interleave")
"""The names of the modes by their numbers (``MPOL_*``); the default policy has none."""
FLAGS: Final = ((1 << 15, "static"), (1 << 14, "relative"), (1 << 13, "balancing"))
"""What may be set in a mode beside its number (``MPOL_F_*``)."""
_NUMBER: Final = (1 << 13) - 1


def policy_text(mode: int, nodes: str = "") -> str:
    """A policy as text.

    mode: its number and flags, as mbind(2) takes them. nodes: the list of its nodes.

    >>> policy_text(2, "0"), policy_text(3 | 1 << 15, "0-1,3"), policy_text(0)
    ('bind:0', 'interleave=static:0-1,3', '')
    """
    number = mode & _NUMBER
    text = MODES[number] if number < len(MODES) else f"mode-{number}"
    names = [name for bit, name in FLAGS if mode & bit]
    if names:
        text += "=" + "|".join(names)
    return text + (f":{nodes}" if nodes and text and text != "local" else "")


def parse_policy(text: str) -> tuple[int, int]:
    """(mode, bit mask of nodes) of a policy without flags: "bind:0-1,3", "local", "" or "default".

    Raises ValueError for a mode of another name.

    >>> parse_policy("bind:0-1,3")
    (2, 11)
    """
    name, _, nodes = text.partition(":")
    name = "" if name == "default" else name
    if name not in MODES:
        raise ValueError(f"unknown memory policy {text!r}")
    return MODES.index(name), node_mask(nodes)


def node_mask(nodes: str) -> int:
    """A list of nodes as a bit mask; "" is none.

    >>> node_mask("0-1,3")
    11
    """
    mask = 0
    for part in nodes.split(",") if nodes else ():
        first, _, last = part.partition("-")
        for node in range(int(first), int(last or first) + 1):
            mask |= 1 << node
    return mask


def node_list(mask: int) -> str:
    """A bit mask of nodes as a list.

    >>> node_list(0b1011)
    '0-1,3'
    """
    parts = []
    node = 0
    while mask >> node:
        if mask >> node & 1:
            first = node
            while mask >> (node + 1) & 1:
                node += 1
            parts.append(str(first) if first == node else f"{first}-{node}")
        node += 1
    return ",".join(parts)
