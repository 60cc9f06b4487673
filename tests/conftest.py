"""Shared by all tests: what a live test does where it cannot run."""

import os
import shutil

import pytest

from vmaweld.kernel import guest


def require(condition: bool, reason: str) -> None:
    """Skip with `reason` unless `condition`; in CI fail, for there a skip would hide a hole."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be able to run: {reason}")
    pytest.skip(reason)


def require_guest(version: str) -> None:
    """That kernel can be booted. Its image is fetched in CI only: elsewhere a test must not load 70 MB unasked."""
    works, reason = guest.available(version)
    require(works or bool(os.environ.get("CI") and shutil.which("qemu-system-x86_64")), reason)
