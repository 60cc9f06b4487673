# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m vmaweld``: the program where its script is not on the path."""

from vmaweld.cli import main

main()
