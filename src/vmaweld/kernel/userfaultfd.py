# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd(2) and its ioctls, from ``include/uapi/linux/userfaultfd.h``."""

import errno
import os
import struct
from fcntl import ioctl
from typing import Final

from vmaweld.abi import UFFDIO_REGISTER_MODE_MISSING
from vmaweld.kernel import syscalls, x86_64

UFFD_USER_MODE_ONLY: Final = 1  # 5.11
UFFD_API: Final = 0xAA
FEATURE_MOVE: Final = 1 << 16  # 6.8

MOVE_DONTWAKE: Final = 1
MOVE_ALLOW_SRC_HOLES: Final = 2

UFFDIO_API: Final = 0xC018AA3F
UFFDIO_REGISTER: Final = 0xC020AA00
UFFDIO_UNREGISTER: Final = 0x8010AA01
UFFDIO_WAKE: Final = 0x8010AA02
UFFDIO_COPY: Final = 0xC028AA03
UFFDIO_MOVE: Final = 0xC028AA05


class Userfaultfd:
    """A userfaultfd of this process.

    user_mode_only: only faults from user code are reported, which unprivileged users may ask for (since 5.11; all
        faults before).
    features: wanted UFFD_FEATURE_* bits; the kernel refuses those it lacks.
    Every method raises OSError with errno and a message that names the call.
    """

    def __init__(self, *, user_mode_only: bool = True, features: int = 0) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (UFFD_USER_MODE_ONLY if user_mode_only else 0)
        result = syscalls.raw(x86_64.NR_USERFAULTFD, flags)
        if result == -errno.EINVAL and user_mode_only:  # before 5.11
            result = syscalls.raw(x86_64.NR_USERFAULTFD, flags & ~UFFD_USER_MODE_ONLY)
        self.fd = syscalls.check(result, f"userfaultfd({flags:#x})")
        try:
            answer = self._ioctl(
                UFFDIO_API, struct.pack("<QQQ", UFFD_API, features, 0), f"UFFDIO_API(features={features:#x})"
            )
        except OSError:
            os.close(self.fd)
            raise
        self.features: int = struct.unpack("<QQQ", answer)[1]
        """All features that this kernel has."""

    def _ioctl(self, number: int, argument: bytes, call: str) -> bytes:
        try:
            return ioctl(self.fd, number, argument)
        except OSError as error:
            raise OSError(error.errno, f"{call}: {error.strerror}") from None

    def register(self, addr: int, length: int, mode: int = UFFDIO_REGISTER_MODE_MISSING) -> int:
        """UFFDIO_REGISTER; mode: UFFDIO_REGISTER_MODE_*. Returns the ioctls that the range allows, a bit each."""
        argument = struct.pack("<QQQQ", addr, length, mode, 0)
        answer = self._ioctl(UFFDIO_REGISTER, argument, f"UFFDIO_REGISTER({addr:#x}, {length:#x}, mode={mode})")
        ioctls: int = struct.unpack("<QQQQ", answer)[3]
        return ioctls

    def unregister(self, addr: int, length: int) -> None:
        """UFFDIO_UNREGISTER."""
        self._ioctl(UFFDIO_UNREGISTER, struct.pack("<QQ", addr, length), f"UFFDIO_UNREGISTER({addr:#x}, {length:#x})")

    def wake(self, addr: int, length: int) -> None:
        """UFFDIO_WAKE."""
        self._ioctl(UFFDIO_WAKE, struct.pack("<QQ", addr, length), f"UFFDIO_WAKE({addr:#x}, {length:#x})")

    def copy(self, dst: int, src: int, length: int, mode: int = 0) -> int:
        """UFFDIO_COPY; returns the bytes copied."""
        return self._transfer(UFFDIO_COPY, "UFFDIO_COPY", dst, src, length, mode)

    def move(self, dst: int, src: int, length: int, mode: int = MOVE_ALLOW_SRC_HOLES) -> int:
        """UFFDIO_MOVE (6.8); returns the bytes moved.

        Fewer than `length` where the kernel stopped on the way, for whatever reason, after the first page: a
        further call from there on tells the reason.
        """
        return self._transfer(UFFDIO_MOVE, "UFFDIO_MOVE", dst, src, length, mode)

    def _transfer(self, number: int, name: str, dst: int, src: int, length: int, mode: int) -> int:
        argument = bytearray(struct.pack("<QQQQq", dst, src, length, mode, 0))
        try:
            ioctl(self.fd, number, argument)
        except OSError as error:
            done: int = struct.unpack_from("<q", argument, 32)[0]
            if error.errno == errno.EAGAIN and done > 0:
                return done
            raise OSError(
                error.errno, f"{name}(dst={dst:#x}, src={src:#x}, {length:#x}, mode={mode}): {error.strerror}"
            ) from None
        moved: int = struct.unpack_from("<q", argument, 32)[0]
        return moved

    def close(self) -> None:
        """Close it: everything registered with it is unregistered. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Userfaultfd":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def available(features: int = 0) -> tuple[bool, str]:
    """(whether this process may use userfaultfd with all of `features`, the reason where not)."""
    try:
        with Userfaultfd() as uffd:
            missing = features & ~uffd.features
    except OSError as error:
        if error.errno == errno.EPERM:
            return False, "userfaultfd is not permitted: run as root, or set vm.unprivileged_userfaultfd=1"
        if error.errno == errno.ENOSYS:
            return False, "this kernel has no userfaultfd (CONFIG_USERFAULTFD)"
        return False, str(error)
    if missing & FEATURE_MOVE:
        return False, "this kernel has no UFFDIO_MOVE (it came with Linux 6.8)"
    if missing:
        return False, f"this kernel's userfaultfd lacks features {missing:#x}"
    return True, ""
