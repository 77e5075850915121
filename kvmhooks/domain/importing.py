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

from kvmhooks.domain import (
    import_cpu,
    import_devices,
    import_hardware,
    import_machine,
    import_passthrough,
    import_tuning,
)
from kvmhooks.domain.reading import Left, Reading
from kvmhooks.domain.source import Source, parse
from kvmhooks.domain.toml import to_toml
from kvmhooks.errors import InputError, Problem, SpecError
from kvmhooks.spec.load import parse_vm
from kvmhooks.spec.model import VmSpec

Tables = dict[str, Any]

CONCERNS: Final[tuple[Callable[[Reading], Tables], ...]] = (
    import_machine.identity,
    import_machine.machine,
    import_hardware.machine,
    import_machine.boot,
    import_cpu.cpu,
    import_hardware.interface,
    import_cpu.memory,
    import_hardware.backing,
    import_machine.isolation,
    import_devices.disks,
    import_devices.nets,
    import_devices.console,
    import_hardware.clock,
    import_hardware.devices,
    import_passthrough.devices,
    import_tuning.tuning,
    import_machine.security,
    import_machine.constants,
    import_devices.others,
)
"""Every concern; the last ones see what the others left."""


@frozen
class Import:
    """A domain as a spec, and what is not in it."""

    toml: str
    """The text of the vm.toml."""
    spec: VmSpec
    decided: tuple[Left, ...]
    """What stands in the domain and kvmhooks decides anew: pins, addresses, controllers."""
    unexpressed: tuple[Left, ...]
    """What a VM of this spec would not have."""


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
        for key, said in concern(reading).items():
            known = tables.get(key)
            tables[key] = {**known, **said} if isinstance(known, dict) else said
    toml, spec, refused = _fitting(tables, source.name)
    return Import(
        toml=toml,
        spec=spec,
        decided=reading.decided(),
        unexpressed=(*reading.unexpressed, *reading.rest(), *refused),
    )


def _fitting(tables: Tables, name: str) -> tuple[str, VmSpec, list[Left]]:
    """The tables as a spec, without what it refuses but does not need: that is told.

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
            refused += [Left(one.at, f"found {one.found}: {one.expected}") for one in removed]


def _without(tables: Tables, problems: Sequence[Problem]) -> list[Problem]:
    """Take away what problems are about, one of each table, and return those in their order.

    Without one the others of its table may have no cause any more. The last items of a list go
    first, so that the numbers of the others hold.
    """
    by_number = sorted(problems, key=lambda one: [*(-int(n) for n in _NUMBER.findall(one.at)), 1])
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
