"""The pins and nodesets of a domain for this host; nothing else of it is changed.

A VM that comes from another host, or that was saved, has the pins that were right then. Everything
that its guest sees stays: a guest that runs cannot be told of another CPU or of other cells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.administrator import HOST
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.libvirt.edit.editor import Change, Editor
from kvmhooks.libvirt.edit.text import Element, parse
from kvmhooks.libvirt.importing.cpu import cpu_set, vcpu_pins, wants_exclusive
from kvmhooks.libvirt.importing.importing import import_source
from kvmhooks.libvirt.tuning import cpu, devices, memory
from kvmhooks.libvirt.tuning.gains import gains_of_place
from kvmhooks.libvirt.tuning.own import PlaceOf, with_cells
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.machine.domain_reading import number
from kvmhooks.machine.target import ITS_OWN
from kvmhooks.values import CpuSet, union

PLACES: Final = ("cputune/vcpupin", "cputune/emulatorpin", "cputune/iothreadpin", "numatune/")
"""The places where something may change."""


@frozen
class Measure:
    """A measure of how a VM's vCPUs lie on a host, for people: the score decides what is better."""

    nodes: int
    l3: int
    cores: int

    def __str__(self) -> str:
        return f"{self.nodes} nodes, {self.l3} L3 caches, {self.cores} cores"


@frozen
class Replanned:
    """A domain where it is, or on other CPUs if the planner's score is better there."""

    document: bytes
    changes: tuple[Change, ...]
    before: Measure | None
    """None where its pins are not of this host."""
    after: Measure
    gains: tuple[str, ...]
    """The gains of the new CPUs, in words; empty where it stays."""
    moves: bool
    """A vCPU has other CPUs than before."""
    pins: dict[int, CpuSet]
    emulator: CpuSet
    iothreads: dict[int, CpuSet]
    nodes: CpuSet
    """The host nodes of the new CPUs; empty where the host has none."""
    lost_caches: CpuSet
    """The L3 caches that it has shares of (``<cachetune>``, ``<memorytune>``) and would leave."""
    warnings: tuple[str, ...] = ()
    """The plan's, of the new place."""


@frozen
class Answer:
    """The answer for a VM that runs: where it would be, and whether it goes there."""

    found: Replanned
    goes: bool
    reason: str
    """The cause that it stays; empty where it goes."""


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
    document: bytes,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    memory_moves: bool = True,
) -> Replanned:
    """Place the VM of a domain at ``place`` beside those of ``claims`` too.

    It stays where it is if the planner's score is as good there, as with ``tune``
    (``kvmhooks.placement.own_place``). Without ``memory_moves`` it stays on the nodes that its
    memory is bound to. Raises ``InputError`` for what is no domain that can be planned,
    ``PlanError`` when it does not fit as it is.
    """
    inventory = inventory_on(place, claims)
    host = inventory.host
    source = parse(document)
    root = source.root
    spec = import_source(source).spec
    editor = Editor(source)
    editor.concern = "cpu"
    place_of = PlaceOf(root, inventory, keep_pins=False, keep_nodes=not memory_moves, is_asked=True)
    situation = Situation(
        editor=editor,
        spec=spec,
        host=host,
        make_plan=lambda: place_of.plan(
            devices.with_iothreads(with_cells(spec, root), devices.iothreads_of(root)), ITS_OWN
        ),
    )
    made = situation.plan
    cells = len(list(root.all("cpu/numa/cell"))) or 1
    if cells != len(made.cells):
        raise PlanError(
            "cpu/numa", f"{cells} guest cells", f"{len(made.cells)} on this host: it must be tuned"
        )
    cpu.pins(situation)
    if root.find("numatune") is not None:
        editor.concern = "memory"
        memory.nodes(situation)
    result = editor.written(editor.result())
    _check(editor.changes, result, inventory)
    pins = {pin.vcpu: pin.cpus for pin in made.vcpus}
    own = union(pins.values())
    moves = pins != place_of.pins
    return Replanned(
        document=result,
        changes=tuple(editor.changes),
        before=measure(host, vcpu_pins(root).values()),
        after=_known(measure(host, pins.values())),
        gains=tuple(gains_of_place(made, inventory, place_of.pins, pins)) if moves else (),
        moves=moves,
        pins=pins,
        emulator=made.emulator - own,
        iothreads={pin.id: pin.cpus - own for pin in made.iothreads},
        nodes=situation.nodes_of(own) or CpuSet(),
        lost_caches=_lost_caches(root, host, own),
        warnings=made.warnings_of_place,
    )


def answer_for(document: bytes, inventory: Inventory, memory: Collection[int] = ()) -> Answer:
    """Return whether a VM that runs goes to other CPUs, with its memory on these nodes.

    It goes where the score is better, or from where it cannot be; its memory and its shares of
    caches do not go along. Raises as ``replan``.
    """
    why = misfit(document, inventory)
    found = replan(document, inventory, memory_moves=not memory)
    if found.moves or why:
        reason = _reason_to_stay(found, memory)
        return Answer(found, goes=not reason, reason=reason)
    if memory:
        elsewhere = replan(document, inventory)
        reason = _reason_to_stay(elsewhere, memory) if elsewhere.moves else ""
        if reason:
            return Answer(elsewhere, goes=False, reason=reason)
    return Answer(found, goes=False, reason=f"nothing would be better: {found.before} as it is")


def _reason_to_stay(found: Replanned, memory: Collection[int]) -> str:
    """Return why a running VM cannot go: something does not go along. Empty when it can."""
    remedy = "stop it and run `kvmhooks tune NAME --apply`"
    if memory and found.nodes and not set(found.nodes) <= set(memory):
        nodes = ",".join(map(str, sorted(memory)))
        return (
            f"it would have {found.after} on node {found.nodes}, but its memory would stay on node "
            f"{nodes}: {remedy}"
        )
    if found.lost_caches:
        return (
            f"it would have {found.after}, but its shares of L3 caches are of {found.lost_caches}: "
            f"{remedy}"
        )
    return ""


def _lost_caches(root: Element, host: Host, cpus: CpuSet) -> CpuSet:
    """Return the L3 caches that a domain has shares of, if some of the CPUs are at none of them."""
    named = CpuSet(
        number(share.get("id") or "", f"{share.path}@id")
        for path in ("cputune/cachetune/cache", "cputune/memorytune/node")
        for share in root.all(path)
    )
    here = {host.cpu(cpu).l3 for cpu in cpus & host.online}
    known = CpuSet(cache for cache in here if cache is not None)
    return named if named and not known <= named else CpuSet()


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


def _check(changes: Sequence[Change], result: bytes, inventory: Inventory) -> None:
    """Check the promise of this module, on its own result."""
    for change in changes:
        if not change.at.startswith(PLACES):
            raise PlanError(change.at, change.before or "nothing", "what a guest sees, as it is")
    why = misfit(result, inventory)
    if why:
        raise PlanError("cputune", why, "a place where the domain fits as it is")
