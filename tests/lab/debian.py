"""Debian packages, from the sources that this machine is configured with.

``apt-get indextargets`` answers alike for both styles of sources files. A private set of package
lists (below the cache) adds the backports suite, which a machine need not have enabled.
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
LISTS_DAYS = 7
"""Package lists older than this are fetched again, so a new kernel is noticed within a week."""


@dataclass(frozen=True)
class Sources:
    """Where this machine gets Debian from."""

    main: str
    security: str

    def lines(self, suite: str = SUITE, *, backports: bool = False) -> list[str]:
        """The sources in one-line style; sid has neither updates nor a security suite."""
        if suite == "sid":
            return [f"deb {self.main} sid main"]
        lines = [
            f"deb {self.main} {suite} main",
            f"deb {self.main} {suite}-updates main",
            f"deb {self.security} {suite}-security main",
        ]
        return [*lines, f"deb {self.main} {BACKPORTS} main"] if backports else lines


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


def kernel_package(suite: str) -> str:
    """The package that linux-image-amd64 stands for in this suite."""
    (kernel,) = _show(["linux-image-amd64"], suite)
    return kernel["Depends"].split()[0].strip(",")


def unpack(packages: list[str], suite: str, into: Path) -> None:
    """Download these packages and lay out their files, installing nothing."""
    debs = into.with_name(into.name + ".debs")
    debs.mkdir(parents=True)
    wanted = [f"{package}/{suite}" for package in packages]
    run(["apt-get", *_options(), "-qq", "download", *wanted], cwd=debs)
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
    text = run(["apt-cache", *_options(), "show", "--no-all-versions", *wanted])
    paragraphs = [part.splitlines() for part in text.strip().split("\n\n")]
    return [
        dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != " ")
        for lines in paragraphs
    ]


@cache
def _options() -> list[str]:
    home = store.directory() / "apt"
    with store.locked(store.directory() / "apt.lock"):
        (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (home / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        listed = home / "sources.list"
        text = "\n".join(sources().lines(backports=True)) + "\n"
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
