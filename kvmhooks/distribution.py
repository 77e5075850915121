"""The way this kvmhooks was installed: what brings a library that it lacks, and where its pages
are.

pipx keeps ``pipx_metadata.json`` at the root of each environment that it makes
(pipx/pipx_metadata_file.py), uv ``uv-receipt.toml`` in each tool's (uv-tool/src/lib.rs,
``RECEIPT_FILE``). Debian's packages have their modules below ``/usr/lib/python3/dist-packages``
(Debian Python Policy, «Module Path»), where nothing else may install.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final, NamedTuple


class Extra(NamedTuple):
    """A library that few hosts need, so that it is not installed with kvmhooks."""

    library: str
    """Its name on the Python Package Index."""
    debian: str
    """Its package in Debian."""


EXTRAS: Final = {
    "libvirt": Extra("libvirt-python", "python3-libvirt"),
    "sriov": Extra("pyroute2", "python3-pyroute2"),
    "cloud-init": Extra("pycdlib", "python3-pycdlib"),
}
"""By their names in ``setup.cfg``."""

PAGES: Final = {"kvmhooks": "1", "kvm-launch": "1", "vm.toml": "5"}
"""The manual's pages and their sections."""

PROGRAMS: Final = ("kvmhooks", "kvm-launch")

COMPLETIONS: Final = {
    "bash": ("share/bash-completion/completions/{}", "docs/completion/{}"),
    "zsh": (
        "share/zsh/site-functions/_{}",
        "share/zsh/vendor-completions/_{}",
        "docs/completion/_{}",
    ),
    "fish": ("share/fish/vendor_completions.d/{}.fish", "docs/completion/{}.fish"),
}
"""By shell, where the completions of a program may be, below an installation or a checkout."""

PACKAGE: Final = Path(__file__).resolve().parent
_DEBIAN: Final = Path("/usr/lib/python3/dist-packages")


def missing(extra: str, *, package: Path = PACKAGE, prefix: str = sys.prefix) -> str:
    """Return what to say where the library of ``extra`` is missing: its name, and what brings it.

    ``package`` is the folder of this package, ``prefix`` the root of its environment.
    """
    library, debian = EXTRAS[extra]
    asked = shlex.quote(f"kvmhooks[{extra}]")
    if package.is_relative_to(_DEBIAN):
        library, command = debian, f"apt install {debian}"
    elif Path(prefix, "pipx_metadata.json").exists():
        command = f"pipx inject kvmhooks {library}"
    elif Path(prefix, "uv-receipt.toml").exists():
        command = f"uv tool install {asked}"
    else:
        command = f"{shlex.quote(sys.executable)} -m pip install {asked}"
    return f"{library} is not installed: `{command}` brings it"


def page(name: str, package: Path = PACKAGE) -> Path | None:
    """Return the file of the manual's page ``name``; None where it was not installed."""
    file = f"{name}.{PAGES[name]}"
    folder = f"share/man/man{PAGES[name]}"
    return _find(package, (f"{folder}/{file}", f"{folder}/{file}.gz", f"docs/man/{file}"))


def completion(shell: str, program: str, package: Path = PACKAGE) -> Path | None:
    """Return the file with which ``shell`` completes ``program``; None where there is none."""
    return _find(package, [name.format(program) for name in COMPLETIONS[shell]])


def _find(package: Path, names: tuple[str, ...] | list[str]) -> Path | None:
    """Return the first of ``names`` that is below a folder above the package.

    An installation's ``share`` is beside the ``lib`` with its modules, whatever its scheme
    (sysconfig, «Installation paths»: ``purelib`` and ``data``).
    """
    found = (above / name for above in package.parents for name in names)
    return next((path for path in found if path.is_file()), None)
