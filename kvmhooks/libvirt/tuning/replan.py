"""The pins and nodesets of a domain for this host; nothing else of it is changed.

A VM that comes from another host, or that was saved, has the pins that were right then. Everything
that its guest sees stays: a guest that runs cannot be told of another CPU or of other cells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import attrs
from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.administrator import HOST
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.libvirt.edit.editor import Change, Editor
from kvmhooks.libvirt.edit.text import Source, parse
from kvmhooks.libvirt.importing.cpu import cpu_set, vcpu_pins, wants_exclusive
from kvmhooks.libvirt.importing.importing import import_source
from kvmhooks.libvirt.tuning import cpu, devices, memory
from kvmhooks.libvirt.tuning.own import with_cells
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.machine.target import ITS_OWN
from kvmhooks.placement import Plan, plan
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union

PLACES: Final = ("cputune/vcpupin", "cputune/emulatorpin", "cputune/iothreadpin", "numatune/")
"""The places where something may change."""


@frozen
class Measure:
    """A measure of how a VM's vCPUs lie on a host; less is better, the first counts most."""

    nodes: int
    l3: int
    cores: int

    def __lt__(self, other: Measure) -> bool:
        return attrs.astuple(self) < attrs.astuple(other)

    def __str__(self) -> str:
        return f"{self.nodes} nodes, {self.l3} L3 caches, {self.cores} cores"


@frozen
class Replanned:
    """A domain on other CPUs."""

    document: bytes
    changes: tuple[Change, ...]
    before: Measure | None
    """None where its pins are not of this host."""
    after: Measure
    pins: dict[int, CpuSet]
    emulator: CpuSet
    iothreads: dict[int, CpuSet]
    nodes: CpuSet
    """The host nodes of the new CPUs; empty where the host has none."""
    warnings: tuple[str, ...] = ()
    """The plan's, of the new place."""


def misfit(document: bytes, place: Host | Inventory, claims: Sequence[Claim | Holding] = ()) -> str:
    """Return why a domain's pins and nodesets are of no use at ``place``; empty when they are.

    Raises ``InputError`` for what is no domain, and ``SpecError`` for a set that is none.
    """
    inventory = inventory_on(place, claims)
    host = inventory.host
    root = parse(document).root
    own = root.find("uuid")
    identity = "" if own is None else own.text.strip().lower()
    cpus = union(vcpu_pins(root).values())
    for pin in (*root.all("cputune/emulatorpin"), *root.all("cputune/iothreadpin")):
        cpus |= cpu_set(pin, "cpuset")
    if not cpus <= host.online:
        return f"CPUs {(cpus - host.online).brief()} are not online here"
    for other in inventory.others_of(identity):
        if not other.exclusive.isdisjoint(cpus):
            return f"CPUs {(other.exclusive & cpus).brief()} are {other.name}'s alone"
    kept = union(vcpu_pins(root).values()) & inventory.limits.housekeeping
    if kept and wants_exclusive(root):
        return f"CPUs {kept.brief()} are the host's (/{HOST}: host.housekeeping)"
    here = CpuSet(node.id for node in host.nodes or ())
    for found in (*root.all("numatune/memory"), *root.all("numatune/memnode")):
        nodes = cpu_set(found, "nodeset")
        if not nodes <= (here or CpuSet({0})):
            return f"there is no node {(nodes - here).brief()} here"
    return ""


def replan(
    document: bytes, place: Host | Inventory, claims: Sequence[Claim | Holding] = ()
) -> Replanned:
    """Place the VM of a domain at ``place`` beside those of ``claims`` too.

    Raises ``InputError`` for what is no domain that can be planned, ``PlanError`` when it does not
    fit as it is.
    """
    inventory = inventory_on(place, claims)
    host = inventory.host
    source = parse(document)
    spec = import_source(source).spec
    editor = Editor(source)
    editor.concern = "cpu"
    situation = Situation(
        editor=editor, spec=spec, host=host, make_plan=partial(_plan, source, spec, inventory)
    )
    made = situation.plan
    cells = len(list(source.root.all("cpu/numa/cell"))) or 1
    if cells != len(made.cells):
        raise PlanError(
            "cpu/numa", f"{cells} guest cells", f"{len(made.cells)} on this host: it must be tuned"
        )
    cpu.pins(situation)
    if source.root.find("numatune") is not None:
        editor.concern = "memory"
        memory.nodes(situation)
    result = editor.written(editor.result())
    _check(editor.changes, result, inventory)
    pins = {pin.vcpu: pin.cpus for pin in made.vcpus}
    own = union(pins.values())
    return Replanned(
        document=result,
        changes=tuple(editor.changes),
        before=measure(host, vcpu_pins(source.root).values()),
        after=_known(measure(host, pins.values())),
        pins=pins,
        emulator=made.emulator - own,
        iothreads={pin.id: pin.cpus - own for pin in made.iothreads},
        nodes=situation.nodes_of(own) or CpuSet(),
        warnings=made.warnings_of_place,
    )


def measure(host: Host, pins: Collection[CpuSet]) -> Measure | None:
    """Return how vCPUs with these pins lie; None where there are none, or one is not here."""
    cpus = union(pins)
    if not cpus or not cpus <= host.online:
        return None
    return Measure(
        nodes=len({host.cpu(cpu).node for cpu in cpus}),
        l3=len({host.cpu(cpu).l3 for cpu in cpus}),
        cores=len({host.core_of(cpu) for cpu in cpus}),
    )


def _known(found: Measure | None) -> Measure:
    if found is None:
        raise PlanError("cpu", "a plan without CPUs", "one for each vCPU")
    return found


def _plan(source: Source, spec: VmSpec, inventory: Inventory) -> Plan:
    """Return the plan of the VM with the iothreads that it has; its origin is not checked."""
    spec = devices.with_iothreads(with_cells(spec, source.root), devices.iothreads_of(source.root))
    return plan(spec, inventory, target=ITS_OWN)


def _check(changes: Sequence[Change], result: bytes, inventory: Inventory) -> None:
    """Check the promise of this module, on its own result."""
    for change in changes:
        if not change.at.startswith(PLACES):
            raise PlanError(change.at, change.before or "nothing", "what a guest sees, as it is")
    why = misfit(result, inventory)
    if why:
        raise PlanError("cputune", why, "a place where the domain fits as it is")
