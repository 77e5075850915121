"""A domain XML as the ``vm.toml`` that describes the same VM, and what that cannot say.

https://libvirt.org/formatdomain.html is the reference for every element. Concerns are small
functions in a flat list; each reads its elements and says its tables of ``vm.toml``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks.domain import import_cpu, import_devices, import_machine
from kvmhooks.domain.reading import Left, Reading
from kvmhooks.domain.source import Source, parse
from kvmhooks.domain.toml import to_toml
from kvmhooks.errors import InputError
from kvmhooks.spec.load import parse_vm
from kvmhooks.spec.model import VmSpec

Tables = dict[str, Any]

CONCERNS: Final[tuple[Callable[[Reading], Tables], ...]] = (
    import_machine.identity,
    import_machine.machine,
    import_machine.boot,
    import_cpu.cpu,
    import_cpu.memory,
    import_machine.isolation,
    import_devices.disks,
    import_devices.nets,
    import_devices.console,
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


def import_source(source: Source) -> Import:
    """Read a domain that is parsed already. Raises as ``read_domain``."""
    root = source.root
    if root.tag != "domain":
        raise InputError(f"{source.name}: found <{root.name[:40]}>, expected <domain>")
    reading = Reading(root)
    tables: Tables = {}
    for concern in CONCERNS:
        tables |= concern(reading)
    toml = to_toml(tables)
    return Import(
        toml=toml,
        spec=parse_vm(toml, source=source.name, folder=Path("/")),
        decided=reading.decided(),
        unexpressed=(*reading.unexpressed, *reading.rest()),
    )
