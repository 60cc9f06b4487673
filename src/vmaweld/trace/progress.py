# SPDX-License-Identifier: GPL-2.0-or-later
"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total)."""
