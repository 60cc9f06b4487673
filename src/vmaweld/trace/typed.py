# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a value that came out of JSON is what a field's annotation says."""

import types
from typing import Any, Final, get_args, get_origin

_MOST: Final = (1 << 64) - 1
"""The largest number that is taken: what 64 bits hold. JSON knows no limit."""


def fits(value: object, hint: Any) -> bool:
    """True if `value` is of the type `hint`: a plain type, a union, or a list or dict of these.

    A bool is no int here, and an int has 64 bits and a sign.

    >>> fits({"lost": 3}, dict[str, int]), fits([1], list[str]), fits(None, int | None)
    (True, False, True)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return any(fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST
    return isinstance(value, hint)
