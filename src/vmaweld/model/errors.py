# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors of the machine are Linux's own."""

import errno as _errno


class LinuxError(Exception):
    """A system call failed the way Linux would have let it fail.

    errno: the positive error number (errno.ENOMEM ...). str() gives ``ENOMEM: why``.
    """

    def __init__(self, errno: int, why: str) -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    def __str__(self) -> str:
        return f"{_errno.errorcode[self.errno]}: {self.why}"
