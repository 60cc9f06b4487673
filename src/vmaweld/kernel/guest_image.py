"""Debian's kernel images: found, fetched and unpacked by the machine's own apt and dpkg, into a cache.

The archive's address comes from the machine's apt configuration; only the suite is another one. apt checks the
signed index and the package's checksum; what is unpacked is kept with checksums of its own, checked at every use.
"""

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from vmaweld.kernel.errors import KernelError

SUITES: Final[dict[str, tuple[str, ...]]] = {
    "5.10": ("bullseye-security", "bullseye"),
    "6.1": ("bookworm-security", "bookworm"),
    "6.12": ("trixie-security", "trixie", "bookworm-backports"),
}
"""Where Debian keeps the kernels of its stable releases; all others pass through `NEWER_SUITES`."""
NEWER_SUITES: Final = ("sid", "trixie-backports")

MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""What a guest needs beside the kernel itself, unless it is built in."""

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MANIFEST: Final = "manifest.json"
_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")


class GuestError(KernelError):
    """A guest could not be fetched, booted or waited for; the message is one line that tells which and what to do."""


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
    """The image of `version`, from the cache or else from the Debian archive (60 to 120 MB).

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
    apt = _Apt(cache_directory() / "apt")
    archives: list[Path] = []
    try:
        home.mkdir(parents=True, exist_ok=True)
        apt.prepare(SUITES.get(version, NEWER_SUITES))
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


class _Apt:
    """apt with sources, lists and archives of its own under `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def prepare(self, suites: tuple[str, ...]) -> None:
        """Write a sources.list of `suites`, at the address that the machine's own sources name."""
        main, security = self._addresses()
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        lines = [
            f"deb {signed}{security if suite.endswith('-security') else main} {suite} main\n"
            for suite in suites
            if security or not suite.endswith("-security")
        ]
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        (self._home / "sources.list").write_text("".join(lines))

    def _addresses(self) -> tuple[str, str]:
        """(the archive, its security updates or "") of the Debian sources that this machine uses."""
        listed = self._run(["apt-get", "indextargets", "--format", "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)"], own=False)
        main = security = ""
        for line in listed.splitlines():
            uri, release, origin = [*line.split("\t"), "", ""][:3]
            if origin not in ("Debian", "") and not origin.startswith("$"):
                continue
            if release.endswith("-security"):
                security = security or uri
            else:
                main = main or uri
        if not main:
            raise GuestError("apt knows no Debian archive here: fetching a guest's kernel needs one in /etc/apt")
        return main, security

    def _run(self, command: list[str], *, own: bool = True) -> str:
        options = {
            "Dir::Etc::sourcelist": self._home / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self._home / "lists",
            "Dir::Cache": self._home / "cache",
            "Dir::Cache::archives": self._home / "cache" / "archives",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
        }
        given = [f"-o{name}={value}" for name, value in options.items()] if own else []
        try:
            ran = subprocess.run(
                [command[0], *given, *command[1:]],
                capture_output=True,
                text=True,
                timeout=900,
                stdin=subprocess.DEVNULL,
                cwd=self._home if own else None,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise GuestError(f"{' '.join(command[:2])} took longer than 15 minutes") from None
        if ran.returncode:
            said = [line for line in ran.stderr.splitlines() if line.startswith(("E:", "Err"))] or [ran.stderr.strip()]
            raise GuestError(f"{' '.join(command[:2])}: {said[-1]}")
        return ran.stdout

    def update(self) -> None:
        """Fetch the package lists."""
        self._run(["apt-get", "-q", "update"])

    def packages(self, version: str) -> list[str]:
        """The newest image package of `version`, and those it is split into (since 6.17 or so).

        Raises GuestError where there is none.
        """
        wanted = re.compile(rf"linux-image-{re.escape(version)}[.-][0-9][^-]*(-[0-9]+)?-amd64")
        names = [
            name for name in self._run(["apt-cache", "pkgnames", "linux-image-"]).split() if wanted.fullmatch(name)
        ]
        if not names:
            raise GuestError(f"the Debian archive has no image of Linux {version} (any more)")
        newest = max(names, key=lambda name: [int(part) for part in re.findall(r"[0-9]+", name.removesuffix("-amd64"))])
        release = newest.removeprefix("linux-image-")
        shown = self._run(["apt-cache", "show", newest])
        parts = re.findall(rf"\b(linux-(?:base|binary|modules)-{re.escape(release)})(?![\w.+-])", shown)
        return [newest, *dict.fromkeys(parts)]

    def download(self, package: str) -> Path:
        """The package's archive; apt has checked it."""
        self._run(["apt-get", "-q", "download", package])
        archives = sorted(self._home.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        if not archives:
            raise GuestError(f"apt-get download {package} left no package in {self._home}")
        return archives[-1]


def _unpack(release: str, archives: list[Path], home: Path) -> None:
    """The kernel and `MODULES` (with what they depend on), decompressed, and a manifest with their checksums."""
    candidates: dict[str, bytes] = {}
    builtin: set[str] = set()
    found = False
    for archive in archives:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as dpkg:
            assert dpkg.stdout is not None
            with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is None:
                        continue
                    name = member.name.rsplit("/", 1)[-1]
                    if name in (f"vmlinuz-{release}", "vmlinuz"):
                        (home / "vmlinuz").write_bytes(file.read())
                        found = True
                    elif name == "modules.builtin":
                        builtin |= {_module_name(line) for line in file.read().decode().split()}
                    elif "/kernel/" in member.name and _is_module(name) and _may_matter(member.name):
                        candidates[_module_name(name)] = _decompress(name, file.read())
        if dpkg.returncode:
            raise GuestError(f"dpkg-deb could not unpack {archive.name}")
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
