"""Options that would do nothing beside others: they are refused, by one table for all verbs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvmhooks.errors import UsageError

Given = Callable[[argparse.Namespace], object]

LIVE: Final = "/"
"""The root of this machine."""

NO_LIBVIRT: Final = (0, 0)
SYSTEM: Final = "qemu:///system"
"""The libvirt that a verb asks without ``--connect``."""

PLACING: Final = frozenset({"cpu", "memory"})
"""The concerns of ``tune`` that change a VM's place."""


def is_file(name: str) -> bool:
    """Return whether a word is a file with a domain, not the name of one that libvirt has."""
    return name == "-" or "/" in name or Path(name).exists()


def concerns(arguments: argparse.Namespace) -> frozenset[str] | None:
    """Return the concerns of ``--only``; None without it."""
    return None if arguments.only is None else frozenset(arguments.only.split(","))


def _lacks(*concern: str) -> Given:
    """Return a condition: ``--only`` names none of these."""
    return lambda given: given.only is not None and not set(concern) & (concerns(given) or set())


def _is_elsewhere(given: argparse.Namespace) -> bool:
    return bool(given.host != LIVE)


_FOR_PACKAGES: Final = "expected --programs and --root"

HOLLOW: Final[dict[str, tuple[tuple[str, Given, str], ...]]] = {
    "host": (
        ("unredacted", lambda given: not given.capture, "no --capture, expected one"),
        (
            "json",
            lambda given: str(given.svg) == "-",
            "--svg - beside it, expected one document on standard output",
        ),
    ),
    "hooks": (
        (
            "force",
            lambda given: given.action != "uninstall",
            "it beside {action}, expected uninstall",
        ),
        ("python", lambda given: given.action != "install", "it beside {action}, expected install"),
    ),
    "install-units": (
        ("packaged", lambda given: given.remove, f"--remove beside it, {_FOR_PACKAGES}"),
        ("packaged", lambda given: given.user, f"--user beside it, {_FOR_PACKAGES}"),
        ("programs", lambda given: given.remove, "--remove beside it, expected one of the two"),
    ),
    "isolate": (
        ("connect", lambda given: given.print, "--print beside it, expected one of the two"),
    ),
    "plan": (
        (
            "json",
            lambda given: str(given.svg) == "-",
            "--svg - beside it, expected one document on standard output",
        ),
    ),
    "replan": tuple(
        (option, lambda given: given.domain == "-", "- beside it, expected a running VM's name")
        for option in ("connect", "dry_run", "json")
    ),
    "tune": (
        ("repin", lambda given: given.keep_pins, "--keep-pins beside it, expected one of the two"),
        ("keep_pins", _lacks("cpu"), "--only {only} beside it, expected cpu among those"),
        ("repin", _lacks(*PLACING), "--only {only} beside it, expected cpu or memory among those"),
        ("profile", _lacks("profile"), "--only {only} beside it, expected profile among those"),
        (
            "only",
            lambda given: "profile" in (concerns(given) or ()) and given.profile is None,
            "profile without --profile, expected both",
        ),
        (
            "connect",
            lambda given: is_file(given.domain) and not given.apply,
            "the file {domain} beside it, expected a domain's name, or --apply",
        ),
        ("apply", _is_elsewhere, "--host beside it, expected this machine: it is defined here"),
    ),
}  # fmt: skip
"""Of each verb the options, when one does nothing, and the message without its name.

The message has the values of other options in braces.
"""

SOURCES: Final[tuple[tuple[str, Given, str], ...]] = (
    (
        "assume_kvm",
        lambda given: not _is_elsewhere(given),
        "this machine, expected --host: KVM is tried here",
    ),
    (
        "assume_kvm",
        lambda given: given.accel in {"kvm", "tcg"},
        "--accel beside it, expected one of the two",
    ),
    (
        "capabilities",
        lambda given: given.libvirt == NO_LIBVIRT,
        "--libvirt 0 beside it, expected one of the two",
    ),
    ("run_dir", _is_elsewhere, "--host beside it, expected this machine: none run there"),
    ("defined", lambda given: given.claims, "--claims beside it, expected one of the two"),
    (
        "defined",
        lambda given: _is_elsewhere(given) and not Path(given.host).is_dir(),
        "no directory in --host, expected one with /etc",
    ),
)
"""The same for the options that say what a plan is made on."""


def check(verb: str, arguments: argparse.Namespace) -> None:
    """Raise ``UsageError`` for an option of a verb that would do nothing beside the others."""
    _check(HOLLOW.get(verb, ()), arguments)


def check_sources(arguments: argparse.Namespace) -> None:
    """Raise ``UsageError`` for what would change nothing of an inventory."""
    _check(SOURCES, arguments)


def _check(rules: tuple[tuple[str, Given, str], ...], arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    for option, is_hollow, message in rules:
        if given.get(option) not in {None, False} and is_hollow(arguments):
            name = option.replace("_", "-")
            raise UsageError(f"--{name}: found {message.format(**given)}")
