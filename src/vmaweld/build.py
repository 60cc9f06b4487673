# SPDX-License-Identifier: GPL-2.0-or-later
"""Which build runs: the model compiled by mypyc, or the same modules as plain Python."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec


def compiled() -> bool:
    """True if the model that an import would load is the compiled one. Loads nothing of it."""
    spec = find_spec("vmaweld.model.merge")
    return spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))


def describe() -> str:
    """The build in words: ``compiled`` or ``pure Python``."""
    return "compiled" if compiled() else "pure Python"
