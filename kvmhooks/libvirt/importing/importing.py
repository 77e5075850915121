"""A domain XML as the ``vm.toml`` that describes the same VM, and what that cannot say.

https://libvirt.org/formatdomain.html is the reference for every element. Concerns are small
functions in a flat list; each reads its elements and says its tables of ``vm.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks.errors import InputError, Problem, SpecError
from kvmhooks.libvirt.edit.text import Source, parse
from kvmhooks.libvirt.edit.toml import to_toml
from kvmhooks.libvirt.importing import (
    cpu,
    devices,
    hardware,
    machine,
    passthrough,
    tuning,
)
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Left, Tables
from kvmhooks.spec.load import parse_vm
from kvmhooks.spec.model import VmSpec

CONCERNS: Final[tuple[Callable[[Reading], Tables], ...]] = (
    machine.identity,
    machine.machine,
    hardware.machine,
    machine.boot,
    cpu.cpu,
    hardware.interface,
    cpu.memory,
    hardware.backing,
    machine.isolation,
    devices.disks,
    devices.nets,
    devices.console,
    hardware.clock,
    hardware.devices,
    passthrough.devices,
    tuning.tuning,
    machine.security,
    machine.constants,
    devices.others,
)
"""Every concern; the last ones see what the others left."""


@frozen
class Import:
    """A domain as a spec, and what is not in it."""

    toml: str
    """The text of the vm.toml."""
    spec: VmSpec
    decided: tuple[Left, ...]
    """The parts of the domain that kvmhooks decides anew: pins, addresses, controllers."""
    unexpressed: tuple[Left, ...]
    """The parts that a VM of this spec would not have."""


def read_domain(document: str | bytes, name: str = "domain XML") -> Import:
    """Read a domain's XML; ``name`` is the file's, for messages.

    Raises ``InputError`` for what is no domain of libvirt's, and ``SpecError`` for one that has no
    VM of kvmhooks' kind in it at all, such as one of another architecture.
    """
    return import_source(parse(document, name))


def import_source(source: Source, profile: str | None = None) -> Import:
    """Read a domain that is parsed already, for a ``profile`` under its own words.

    Raises as ``read_domain``.
    """
    root = source.root
    if root.tag != "domain":
        raise InputError(f"{source.name}: found <{root.name[:40]}>, expected <domain>")
    reading = Reading(root)
    tables: Tables = {} if profile is None else {"profile": profile}
    for concern in CONCERNS:
        for key, value in concern(reading).items():
            known = tables.get(key)
            tables[key] = {**known, **value} if isinstance(known, dict) else value
    toml, spec, refused = _fitting(tables, source.name)
    return Import(
        toml=toml,
        spec=spec,
        decided=reading.decided(),
        unexpressed=(*reading.unexpressed, *reading.rest(), *refused),
    )


def _fitting(tables: Tables, name: str) -> tuple[str, VmSpec, list[Left]]:
    """Return the tables as a spec, without what it refuses but does not need: that is told.

    Raises ``SpecError`` for what it needs.
    """
    refused: list[Left] = []
    while True:
        toml = to_toml(tables)
        try:
            return toml, parse_vm(toml, source=name, folder=Path("/")), refused
        except SpecError as error:
            removed = _without(tables, error.problems)
            if not removed:
                raise
            refused += [
                Left(problem.at, f"found {problem.found}: {problem.expected}")
                for problem in removed
            ]


def _without(tables: Tables, problems: Sequence[Problem]) -> list[Problem]:
    """Take away what problems are about, one of each table, and return those in their order.

    Without one the others of its table may have no cause any more. The last items of a list go
    first, so that the numbers of the others hold.
    """
    by_number = sorted(
        problems, key=lambda problem: [*(-int(n) for n in _NUMBER.findall(problem.at)), 1]
    )
    removed: dict[str, Problem] = {}
    for problem in by_number:
        table = problem.at.rpartition("]")[0] or problem.at.partition(".")[0]
        if table not in removed and _remove(tables, problem.at):
            removed[table] = problem
    taken = {id(problem) for problem in removed.values()}
    return [problem for problem in problems if id(problem) in taken]


def _remove(tables: Tables, at: str) -> bool:
    """Take away what a problem is about; false for what every VM must have."""
    if at in _NEEDED or not at:
        return False
    holder: Any = tables
    key: Any
    *steps, last = re.findall(r"[^.\[\]]+", at)
    trail: list[tuple[Any, Any]] = []
    for step in steps:
        key = int(step) if isinstance(holder, list) else step
        trail.append((holder, key))
        try:
            holder = holder[key]
        except (KeyError, IndexError):
            return False
    key = int(last) if isinstance(holder, list) else last
    if isinstance(holder, list) or key in holder:
        del holder[key]
        return True
    for owner, index in reversed(trail):
        if isinstance(owner, list):  # a table of an array lacks what it needs: the whole goes
            del owner[index]
            return True
    return trail != [] and trail[0][0].pop(trail[0][1], None) is not None


_NUMBER: Final = re.compile(r"\[([0-9]+)\]")
_NEEDED: Final = {"name", "cpu", "cpu.vcpus", "memory", "memory.size"}
