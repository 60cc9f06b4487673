# SPDX-License-Identifier: GPL-2.0-or-later
"""Private directories for work in progress; what a killed owner leaves behind, the next run clears.

A scratch directory lies in the directory that its owner names, is called ``.vmaweld-`` and twelve hexadecimal digits,
may be entered by its owner's user alone, and holds a lock file with an flock on it. The kernel drops that lock when
the owner ends, however it ends, so a lock that can be taken proves that the owner is dead.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PREFIX: Final = ".vmaweld-"
LOCK: Final = "vmaweld.lock"
_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """A private directory in `parent`, emptied and removed by `close`, which the end of a ``with`` block calls.

    parent: where it lies; None takes the directory for temporary files. Everything is done through descriptors, so
    nobody who may rename things in `parent` can lead us into another directory. Raises OSError where it cannot be made.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        self._where = Path(parent or tempfile.gettempdir())
        self.parent = os.open(self._where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        """Descriptor of the directory that it lies in."""
        try:
            clear(self.parent)
            self._name, self.fd, self._lock = _make(self.parent)
        except BaseException:
            os.close(self.parent)
            raise

    @property
    def path(self) -> Path:
        """A path by which this process and those that it starts reach the directory while it is open."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    @property
    def place(self) -> Path:
        """Its name, as people are told it."""
        return self._where / self._name

    def close(self) -> None:
        """Remove it with all that it holds; a second call does nothing."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            _remove(self.parent, self._name, fd)
        finally:
            for descriptor in (fd, self._lock, self.parent):
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make(parent: int) -> tuple[str, int, int]:
    """A new directory in `parent`: its name, its descriptor, its lock's descriptor."""
    while True:
        name = PREFIX + secrets.token_hex(6)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            continue
        # Another run may clear it before the lock is on it: then begin again.
        with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent)
            opened.callback(os.close, fd)
            if not _private(fd):
                raise PermissionError(f"somebody else has replaced {name}")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(LOCK, flags, 0o600, dir_fd=fd)
            opened.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # a file system without locks: nobody can prove that we are dead, so nobody clears it
            if os.fstat(lock).st_nlink:
                opened.pop_all()
                return name, fd, lock


def clear(parent: int) -> None:
    """Remove the scratch directories in the directory `parent` (a descriptor) that a dead process of this user left."""
    with contextlib.suppress(OSError), _opened(".", os.O_RDONLY | _DIRECTORY, parent) as listing:
        for name in os.listdir(listing):
            if name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _clear_one(parent, name)


def _clear_one(parent: int, name: str) -> None:
    with _opened(name, os.O_RDONLY | _DIRECTORY, parent) as fd:
        if not _private(fd):
            return
        try:
            lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            os.rmdir(name, dir_fd=parent)  # killed before the lock was made; fails where the directory holds anything
            return
        try:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(parent, name, fd)
        finally:
            os.close(lock)


def _private(fd: int) -> bool:
    """The directory belongs to the user that we act as, and nobody else may enter it."""
    about = os.fstat(fd)
    return about.st_uid == os.geteuid() and not about.st_mode & 0o077


def _remove(parent: int, name: str, fd: int) -> None:
    """Remove all that the directory `fd` holds, the lock last, then its name if that still leads to an empty one."""
    for entry in sorted(os.listdir(fd), key=lambda entry: entry == LOCK):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                shutil.rmtree(entry, dir_fd=fd)
            else:
                os.unlink(entry, dir_fd=fd)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)


@contextmanager
def _opened(name: str, flags: int, directory: int) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
