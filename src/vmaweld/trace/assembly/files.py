# SPDX-License-Identifier: GPL-2.0-or-later
"""The identity of an open file as text: mappings merge only where they map one and the same open file."""

from vmaweld.trace.assembly.open_files import OpenFile

FileIdentity = tuple[int, int, int]
"""(major, minor, inode)."""


class FileNames:
    """The names of the open files that one address space has mapped so far."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[FileIdentity, OpenFile], str]] = {}

    def of(self, path: str, identity: FileIdentity, opened: OpenFile) -> str:
        """The path, with a number behind it for the second open file of that path and so on."""
        known = self._known.setdefault(path, {})
        label = known.get((identity, opened))
        if label is None:
            label = known[identity, opened] = f"{path}#{len(known) + 1}" if known else path
        return label

    def copy(self) -> "FileNames":
        """What a forked child knows."""
        names = FileNames()
        names._known = {path: dict(known) for path, known in self._known.items()}
        return names
