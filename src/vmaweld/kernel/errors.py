# SPDX-License-Identifier: GPL-2.0-or-later
"""What can stand between a caller and another process."""


class KernelError(Exception):
    """The running kernel would not do or show what was asked; the message is one line for the user."""


class ProcessGone(KernelError):
    """There is no such process, or it ended (a zombie has no address space either)."""


class NoAddressSpace(KernelError):
    """A kernel thread: it has no VMAs, and never will."""


class NotAProcess(KernelError):
    """The number is a thread's, not a process's; the message names the process."""


class NotPermitted(KernelError):
    """The caller may not do or see this; the message names what would allow it."""


class NotSupported(KernelError):
    """Not a thing the running kernel can do; the message names what is missing."""
