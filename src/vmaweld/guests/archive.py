# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's and Ubuntu's kernel packages, fetched by the machine's own apt with sources and lists of their own.

The address of Debian's archive comes from the machine's apt configuration; only the suite is another one. Two of its
packages lead on to Ubuntu's: debootstrap knows the address, ubuntu-keyring the keys. So apt checks every index and
every package against signatures that begin with Debian's.
"""

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

from vmaweld.kernel.errors import KernelError

__all__ = ["KERNELS", "NEWER", "Apt", "GuestError", "files"]


class GuestError(KernelError):
    """A guest could not be fetched, booted or waited for; the message is one line that tells which and what to do."""


class Series(NamedTuple):
    """Where the packages of a kernel are. flavour: how their names end."""

    distribution: str
    flavour: str
    suites: tuple[str, ...]


def _debian(*suites: str) -> Series:
    return Series("Debian", "amd64", suites)


def _ubuntu(release: str, flavour: str = "generic") -> Series:
    return Series("Ubuntu", flavour, (f"{release}-updates", release))


KERNELS: Final[dict[str, Series]] = {
    "5.10": _debian("bullseye-security", "bullseye"),
    "5.15": _ubuntu("jammy"),
    "5.17": _ubuntu("jammy", "oem"),
    "5.19": _ubuntu("jammy"),
    "6.0": _ubuntu("jammy", "oem"),
    "6.1": _debian("bookworm-security", "bookworm"),
    "6.2": _ubuntu("jammy"),
    "6.5": _ubuntu("jammy"),
    "6.8": _ubuntu("noble"),
    "6.11": _ubuntu("noble"),
    "6.12": _debian("trixie-security", "trixie", "bookworm-backports"),
    "6.14": _ubuntu("noble"),
    "7.0": _ubuntu("noble"),
}
"""The versions that stay in their archives. All others pass through `NEWER`, one after the other."""
NEWER: Final = _debian("sid", "trixie-backports")

_DEBIAN_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UBUNTU_KEYS: Final = "ubuntu-archive-keyring.gpg"
_UBUNTU_ADDRESS: Final = "ubuntu-address"
_DEBOOTSTRAP: Final = "usr/share/debootstrap/scripts/gutsy"
"""The script for every release of Ubuntu since that one."""


class Apt:
    """apt on the archive of one series. Everything that it writes lies under `home`."""

    def __init__(self, home: Path, series: Series) -> None:
        self._home = home
        self._series = series

    def update(self) -> None:
        """Fetch the package lists. Raises GuestError."""
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        sources = self._ubuntu_sources() if self._series.distribution == "Ubuntu" else self._debian_sources()
        (self._home / "sources.list").write_text("".join(f"deb {source} main\n" for source in sources))
        self._run(["apt-get", "-q", "update"])

    def packages(self, version: str) -> list[str]:
        """The newest image package of the kernel `version`, and those it is split into.

        Raises GuestError where there is none.
        """
        flavour = self._series.flavour
        wanted = re.compile(rf"linux-image-{re.escape(version)}[.-][0-9][^-]*(-[0-9]+)?-{flavour}")
        names = [
            name for name in self._run(["apt-cache", "pkgnames", "linux-image-"]).split() if wanted.fullmatch(name)
        ]
        if not names:
            raise GuestError(f"the {self._series.distribution} archive has no image of Linux {version} (any more)")
        newest = max(names, key=lambda name: [int(part) for part in re.findall(r"[0-9]+", name.removesuffix(flavour))])
        release = newest.removeprefix("linux-image-")
        shown = self._run(["apt-cache", "show", newest])
        parts = re.findall(rf"\b(linux-(?:base|binary|modules)-{re.escape(release)})(?![\w.+-])", shown)
        return [newest, *dict.fromkeys(parts)]

    def download(self, package: str) -> Path:
        """The package's archive; apt has checked it. Raises GuestError."""
        self._run(["apt-get", "-q", "download", package])
        archives = sorted(self._home.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        if not archives:
            raise GuestError(f"apt-get download {package} left no package in {self._home}")
        return archives[-1]

    def _debian_sources(self) -> list[str]:
        main, security = self._debian_addresses()
        signed = f"[signed-by={_DEBIAN_KEYS}] " if _DEBIAN_KEYS.exists() else ""
        return [
            f"{signed}{security if suite.endswith('-security') else main} {suite}"
            for suite in self._series.suites
            if security or not suite.endswith("-security")
        ]

    def _debian_addresses(self) -> tuple[str, str]:
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

    def _ubuntu_sources(self) -> list[str]:
        keys, address = self._home / _UBUNTU_KEYS, self._home / _UBUNTU_ADDRESS
        if not (keys.exists() and address.exists()):
            debian = Apt(self._home, NEWER)
            debian.update()
            script = debian._file("debootstrap", _DEBOOTSTRAP).decode()
            keys.write_bytes(debian._file("ubuntu-keyring", f"usr/share/keyrings/{_UBUNTU_KEYS}"))
            # Others are for releases without support ("old-releases") and for other processors ("ports").
            found = re.search(r"default_mirror (\w+://archive\S+)", script)
            if found is None:
                raise GuestError("debootstrap does not tell the address of Ubuntu's archive any more")
            address.write_text(found[1])
        return [f"[signed-by={keys}] {address.read_text()} {suite}" for suite in self._series.suites]

    def _file(self, package: str, name: str) -> bytes:
        archive = self.download(package)
        try:
            for found, file in files(archive):
                if found == name:
                    return file.read()
        finally:
            archive.unlink()
        raise GuestError(f"there is no {name} in {archive.name}")

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


def files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a Debian package, in its order: (name without the first slash, the file to read from).

    Raises GuestError where dpkg cannot unpack it.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as dpkg:
        assert dpkg.stdout is not None
        with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name.removeprefix("./"), file
    if dpkg.returncode:
        raise GuestError(f"dpkg-deb could not unpack {archive.name}")
