# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a command may write: the one rule for every file that the user names.

A regular file is replaced as a whole: the new one grows in a scratch directory beside it and takes its name when it is
complete, so a failed or interrupted write leaves the old one as it was. A symbolic link stays, the file that it leads
to is replaced. What is not a regular file is never replaced: a FIFO or a character device is written to where the
format is a stream, everything else is refused. So is a file that the command reads, under whatever name.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

from vmaweld.scratch import Scratch

_MOST_LINKS: Final = 40
"""As the kernel's own MAXSYMLINKS (include/linux/namei.h)."""
_NEW: Final = "output"
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


class OutputError(Exception):
    """An output cannot be written; the message is one line.

    refused: it is nothing that we write to, whatever the circumstances; another name has to be given.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class _Place(NamedTuple):
    """The file that a name leads to. path: links followed. about: its status, None where there is no file yet."""

    path: str
    about: os.stat_result | None


class Output:
    """One output in the making. Everything that can be known beforehand is found out when it is made.

    The end of a ``with`` block publishes it, an exception discards it.

    path: as the user named it. inputs: what the command reads, by name; the output must be none of them.
    stream: the format may be written to a FIFO or a device, too. Raises OutputError.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str]] = (), stream: bool = False
    ) -> None:
        self.path = Path(path)
        self.file: BinaryIO
        self.scratch: Scratch | None = None
        """The directory that the file grows in, for whatever else the work needs; None for a stream."""
        try:
            self._place = _find(os.fspath(path))
            about = self._place.about
            if about is not None and not stat.S_ISREG(about.st_mode):
                self.file = os.fdopen(self._open_stream(about, stream), "wb")
                return
            if about is not None:
                self._may_replace(about, inputs)
            self.scratch = Scratch(os.path.dirname(self._place.path) or ".")
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self.file = os.fdopen(os.open(_NEW, flags, 0o666, dir_fd=self.scratch.fd), "w+b")
            except BaseException:
                self.scratch.close()
                raise
        except OSError as error:
            raise self.error(error) from None

    @property
    def replaces(self) -> bool:
        """A file stands there already."""
        return self._place.about is not None

    def error(self, error: OSError) -> OutputError:
        """`error`, which came of writing to `file`, as the user is told of it."""
        return OutputError(f"cannot write {self.path}: {error.strerror or error}")

    def _refuse(self, why: str) -> OutputError:
        return OutputError(f"cannot write {self.path}: {why}", refused=True)

    def _open_stream(self, about: os.stat_result, stream: bool) -> int:
        kind = next((name for test, name in _KINDS if test(about.st_mode)), "no regular file")
        if not stat.S_ISFIFO(about.st_mode) and not stat.S_ISCHR(about.st_mode):
            raise self._refuse(f"it is {kind}")
        if not stream:
            raise self._refuse(f"it is {kind}, and this format needs a regular file")
        fd = os.open(self._place.path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(about.st_mode):
            os.close(fd)
            raise self._refuse("it changes while one looks at it")
        return fd

    def _may_replace(self, about: os.stat_result, inputs: Iterable[str | os.PathLike[str]]) -> None:
        """Raise OutputError or OSError unless the regular file at our place may be replaced."""
        used: tuple[tuple[Iterable[str | os.PathLike[str] | int], str], ...] = (
            (inputs, "it is what this command reads"),
            ((0, 1, 2), "it is the standard input or output of this command"),
        )
        for names, what in used:
            for name in names:
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(name), about):
                        raise self._refuse(f"{what}; name another file")
        if _planted(self._place.path, about):
            raise self._refuse("it is somebody else's file in a directory that everybody may write to")
        if not os.access(self._place.path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if os.path.realpath(self._place.path) in _mount_points():
            raise self._refuse("something is mounted there, so it cannot be replaced")

    def write(self, data: bytes) -> None:
        """Add `data`. Raises OutputError."""
        try:
            self.file.write(data)
        except OSError as error:
            raise self.error(error) from None

    def publish(self) -> None:
        """Complete the file and give it its name. Raises OutputError, and then nothing is left of it."""
        try:
            self.file.flush()
            if self.scratch is not None:
                self._take_mode()
            self.file.close()
            if self.scratch is not None:
                self._take_name(self.scratch)
        except OSError as error:
            raise self.error(error) from None
        finally:
            self.discard()

    def _take_mode(self) -> None:
        """Owner and mode of the file that is replaced."""
        old, fd = self._place.about, self.file.fileno()
        if old is not None:
            with contextlib.suppress(OSError):  # only root may give files away
                os.fchown(fd, old.st_uid, old.st_gid)
            with contextlib.suppress(OSError):  # file systems without modes
                os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)

    def _take_name(self, scratch: Scratch) -> None:
        name = os.path.basename(self._place.path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=scratch.parent, follow_symlinks=False).st_mode):
                raise self._refuse("meanwhile it has become something else than a regular file")
        os.replace(_NEW, name, src_dir_fd=scratch.fd, dst_dir_fd=scratch.parent)

    def discard(self) -> None:
        """Give it up; what stood there before stays. After `publish` there is nothing left to give up."""
        with contextlib.suppress(OSError):  # a full disk: what is buffered is not wanted any more
            self.file.close()
        if self.scratch is not None:
            self.scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.publish()
        else:
            self.discard()


def _find(path: str) -> _Place:
    """Where `path` leads to. Raises OutputError and OSError."""
    at = path
    for _ in range(_MOST_LINKS):
        try:
            found = os.lstat(at)
        except FileNotFoundError:
            found = None
        if found is None or not stat.S_ISLNK(found.st_mode):
            break
        if _planted(at, found):
            raise OutputError(
                f"cannot write {path}: {at} is somebody else's link in a directory that everybody may write to",
                refused=True,
            )
        at = os.path.join(os.path.dirname(at), os.readlink(at))
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if found is None and not os.path.basename(at):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    try:
        reached = os.stat(path)
    except FileNotFoundError:
        return _Place(at, None)
    if found is not None and os.path.samestat(found, reached):
        return _Place(at, found)
    # A link of /proc (/dev/stdout, /dev/fd/63) leads to what may have no name at all: a pipe, a deleted file.
    if stat.S_ISREG(reached.st_mode):
        raise OutputError(f"cannot write {path}: the file that it leads to has no name any more", refused=True)
    return _Place(path, reached)


def _planted(path: str, about: os.stat_result) -> bool:
    """Somebody else may have put it there for us to fall over.

    The rule of fs.protected_symlinks and fs.protected_regular (may_follow_link and may_create_in_sticky in the kernel's
    fs/namei.c, since 3.6 and 4.19), which not every system switches on: in a sticky directory that everybody may write
    to, only what belongs to us or to the directory's owner is trusted.
    """
    directory = os.stat(os.path.dirname(path) or ".")
    shared = directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH
    return bool(shared) and about.st_uid not in (os.geteuid(), directory.st_uid)


def _mount_points() -> set[str]:
    """All places where something is mounted; single files can be, in containers most of all."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}
