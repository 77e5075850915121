"""Debian packages, from the sources that this machine is configured with.

``apt-get indextargets`` answers alike for both styles of sources files. A private set of package
lists (below the cache) for each release has what a machine need not have enabled: backports, and
the releases after its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from . import cache as store
from .command import run
from .errors import CommandError, LabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUITE = "bookworm"
BACKPORTS = f"{SUITE}-backports"
TRIXIE = "trixie"
SID = "sid"
"""Unstable, which has neither updates nor security updates of its own."""
LISTS_DAYS = 7
"""Package lists older than this are fetched again, so a new kernel is noticed within a week."""


@dataclass(frozen=True)
class Sources:
    """The addresses that this machine gets Debian from."""

    main: str
    security: str

    def lines(self, release: str) -> list[str]:
        """Return the sources of a release in one-line style."""
        lines = [f"deb {self.main} {release} main"]
        if release == SID:
            return lines
        return [
            *lines,
            f"deb {self.main} {release}-updates main",
            f"deb {self.security} {release}-security main",
        ]


def release_of(suite: str) -> str:
    """Return the release that a suite, its backports say, belongs to."""
    return suite.partition("-")[0]


@cache
def sources() -> Sources:
    """Read the machine's own configuration."""
    return Sources(main=_site("Debian"), security=_site("Debian-Security"))


def proxy_options() -> list[str]:
    """The machine's apt settings that say how the network is reached, as ``Name "value"``."""
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-")
    settings = run(["apt-config", "dump"]).splitlines()
    return [line.rstrip(";") for line in settings if line.startswith(wanted) and '""' not in line]


def versions_of(packages: Sequence[str], suite: str) -> list[str]:
    """The versions that would be downloaded, each as ``name=version``."""
    shown = _show(packages, suite)
    return [f"{entry['Package']}={entry['Version']}" for entry in shown]


def kernel_packages(suite: str) -> list[str]:
    """Return the packages that linux-image-amd64 stands for in this suite.

    In bookworm and trixie linux-image-VERSION has the kernel and its modules. In sid that one is
    empty, and depends on linux-base-VERSION (its configuration, the list of what is built in),
    linux-binary-VERSION and linux-modules-VERSION (seen with 7.2).
    """
    (latest,) = _dependencies("linux-image-amd64", suite, "linux-image-")
    parts = ("linux-base-", "linux-binary-", "linux-modules-")
    return [latest, *_dependencies(latest, suite, *parts)]


def unpack(packages: list[str], suite: str, into: Path) -> None:
    """Download these packages and lay out their files, installing nothing."""
    debs = into.with_name(into.name + ".debs")
    debs.mkdir(parents=True)
    wanted = [f"{package}/{suite}" for package in packages]
    run(["apt-get", *_options(release_of(suite)), "-qq", "download", *wanted], cwd=debs)
    into.mkdir(exist_ok=True)
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "--extract", deb, into])
        deb.unlink()
    debs.rmdir()


def _site(label: str) -> str:
    asked = ["apt-get", "indextargets", "--format", "$(SITE)", f"Label: {label}"]
    sites = run(asked).split()
    if not sites:
        raise LabError(f"apt knows no source labelled {label}: run apt-get update once")
    return sites[0]


def _show(packages: Sequence[str], suite: str) -> list[dict[str, str]]:
    wanted = [f"{package}/{suite}" for package in packages]
    options = _options(release_of(suite))
    text = run(["apt-cache", *options, "show", "--no-all-versions", *wanted])
    paragraphs = [part.splitlines() for part in text.strip().split("\n\n")]
    return [
        dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != " ")
        for lines in paragraphs
    ]


def _dependencies(package: str, suite: str, *prefixes: str) -> list[str]:
    (shown,) = _show([package], suite)
    names = [part.split()[0] for part in shown.get("Depends", "").split(",") if part.strip()]
    return [name for name in names if name.startswith(prefixes)]


@cache
def _options(release: str) -> list[str]:
    home = store.directory() / "apt" / release
    with store.locked(store.directory() / "apt.lock"):
        (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (home / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        listed = home / "sources.list"
        lines = sources().lines(release)
        if release == release_of(BACKPORTS):
            lines.append(f"deb {sources().main} {BACKPORTS} main")
        text = "\n".join(lines) + "\n"
        if not listed.exists() or listed.read_text() != text:  # else apt reads all lists anew
            listed.write_text(text)
        options = [
            f"-oDir::Etc::sourcelist={listed}",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={home / 'lists'}",
            f"-oDir::Cache={home}",
            "-oAPT::Sandbox::User=root",
            "-oDir::Cache::pkgcache=pkgcache.bin",  # container images turn it off
            "-oAcquire::Languages=none",
        ]
        _refresh(home / "updated", options)
    return options


def _refresh(stamp: Path, options: list[str]) -> None:
    if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_DAYS * 86400:
        return
    try:
        run(["apt-get", *options, "-qq", "update", "--error-on=any"])
    except CommandError as failure:
        if not stamp.exists():
            raise
        store.say(f"package lists stay as they are: {failure}")
    stamp.touch()
