# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images for guests: fetched from the distributions' archives and unpacked into a cache.

What is unpacked is kept with checksums of its own, checked at every use.
"""

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from vmaweld.guests.archive import KERNELS, NEWER, Apt, GuestError, files

MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""What a guest needs beside the kernel itself, unless it is built in."""

_MANIFEST: Final = "manifest.json"
_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")


class Image(NamedTuple):
    """A kernel in the cache. modules: files to load, in this order."""

    release: str
    kernel: Path
    modules: list[Path]


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/vmaweld/guests``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmaweld" / "guests"


def cached(version: str) -> Image | None:
    """The image of `version` ("6.1"), if it is in the cache and undamaged."""
    home = cache_directory() / version
    try:
        manifest = json.loads((home / _MANIFEST).read_text())
        for name, digest in manifest["sha256"].items():
            if hashlib.sha256((home / name).read_bytes()).hexdigest() != digest:
                return None
        return Image(manifest["release"], home / "vmlinuz", [home / name for name in manifest["modules"]])
    except (OSError, ValueError, KeyError):
        return None


def fetch(version: str, progress: Callable[[str], None] = lambda line: None) -> Image:
    """The image of `version`, from the cache or else from its distribution's archive (60 to 160 MB).

    progress: told each step. Raises GuestError.
    """
    if not _VERSION.fullmatch(version):
        raise GuestError(f"{version!r} is no kernel version (such as 6.1)")
    image = cached(version)
    if image is not None:
        return image
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise GuestError(f"no kernel {version} in {cache_directory()} and no {tool} to fetch it: this needs Debian")
    home = cache_directory() / version
    apt = Apt(cache_directory() / "apt", KERNELS.get(version, NEWER))
    archives: list[Path] = []
    try:
        home.mkdir(parents=True, exist_ok=True)
        progress(f"reading the package lists for Linux {version}")
        apt.update()
        packages = apt.packages(version)
        for package in packages:
            progress(f"fetching {package}")
            archives.append(apt.download(package))
        progress(f"unpacking {packages[0]}")
        _unpack(packages[0].removeprefix("linux-image-"), archives, home)
    except OSError as error:
        raise GuestError(f"cannot keep kernel {version} in {home}: {error.strerror or error}") from None
    finally:
        for archive in archives:
            archive.unlink(missing_ok=True)
    image = cached(version)
    if image is None:
        raise GuestError(
            f"kernel {version} was unpacked to {home}, but is not as it should be: remove it and try again"
        )
    return image


def _unpack(release: str, archives: list[Path], home: Path) -> None:
    """The kernel and `MODULES` (with what they depend on), decompressed, and a manifest with their checksums."""
    candidates: dict[str, bytes] = {}
    builtin: set[str] = set()
    found = False
    for archive in archives:
        for path, file in files(archive):
            name = path.rsplit("/", 1)[-1]
            if name in (f"vmlinuz-{release}", "vmlinuz"):
                (home / "vmlinuz").write_bytes(file.read())
                found = True
            elif name == "modules.builtin":
                builtin |= {_module_name(line) for line in file.read().decode().split()}
            elif "/kernel/" in path and _is_module(name) and _may_matter(path):
                candidates[_module_name(name)] = _decompress(name, file.read())
    if not found:
        raise GuestError(f"there is no kernel in {archives[0].name}")
    order: list[str] = []
    for name in MODULES:
        _add_with_dependencies(_module_name(name), candidates, builtin, order)
    for name in order:
        (home / f"{name}.ko").write_bytes(candidates[name])
    names = ["vmlinuz", *(f"{name}.ko" for name in order)]
    digests = {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in names}
    manifest = {"release": release, "modules": names[1:], "sha256": digests}
    temporary = home / f"{_MANIFEST}.new"
    temporary.write_text(json.dumps(manifest, indent=2))
    temporary.replace(home / _MANIFEST)


def _module_name(path: str) -> str:
    """As the kernel calls it: without directory and suffix, underscores for dashes."""
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def _is_module(name: str) -> bool:
    return name.endswith((".ko", ".ko.xz", ".ko.zst", ".ko.gz"))


def _may_matter(path: str) -> bool:
    """Modules live under the directories of what they are for; the thousands of drivers need not be looked at."""
    return any(part in path for part in ("/fs/", "/net/9p/", "/drivers/virtio/", "/lib/", "/drivers/char/virtio"))


def _decompress(name: str, data: bytes) -> bytes:
    if name.endswith(".xz"):
        return lzma.decompress(data)
    if name.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    if name.endswith(".zst"):
        if shutil.which("zstd") is None:
            raise GuestError("this kernel's modules are compressed with zstd: install zstd")
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True, timeout=60).stdout
    return data


def _add_with_dependencies(name: str, candidates: dict[str, bytes], builtin: set[str], order: list[str]) -> None:
    """Append `name` to `order`, after what it depends on (its ``depends=`` line; depmod has not been run here)."""
    if name in order or name in builtin:
        return
    if name not in candidates:
        raise GuestError(f"this kernel has no module {name}: it cannot mount the host's files")
    match = re.search(rb"\0depends=([^\0]*)\0", candidates[name])
    for needed in match[1].decode().split(",") if match else ():
        if needed:
            _add_with_dependencies(_module_name(needed), candidates, builtin, order)
    order.append(name)
