"""An existing domain made better: what improves is changed, every other byte stays.

Each concern looks at what the domain says and at the plan for its VM, and asks the editor for what
should stand there; what stands there already is no change. So running it on its own output changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Final

import attrs
from attrs import field, frozen

from kvmhooks.host.model import Host
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.libvirt.edit.editor import Change, Editor, New
from kvmhooks.libvirt.edit.text import parse
from kvmhooks.libvirt.importing.importing import import_source
from kvmhooks.libvirt.tuning import cpu, devices, guest, memory, profile
from kvmhooks.libvirt.tuning.gains import gains_of, gains_of_place
from kvmhooks.libvirt.tuning.managers import manager_of
from kvmhooks.libvirt.tuning.own import PlaceOf, addresses_of, is_written_by_kvmhooks
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.machine.target import ITS_OWN, OLDEST, Target
from kvmhooks.placement import Plan, plan
from kvmhooks.spec.model import CpuModel, VmSpec
from kvmhooks.spec.security import Security

Step = Callable[[Situation], None]

CONCERNS: Final[dict[str, tuple[Step, ...]]] = {
    "profile": (profile.profile,),
    "disks": (devices.iothreads, devices.aio),
    "network": (devices.queues,),
    "cpu": (cpu.pins, cpu.model, cpu.topology, guest.hints),
    "memory": (memory.cells, memory.nodes, memory.balloon),
    "clock": (guest.clock,),
    "features": (guest.hyperv,),
}
"""Every concern with its steps, in their order: pins need to know the iothreads."""


_OWN: Final = "kvmhooks wrote this domain: only its place is tuned here, the rest in its vm.toml"

PLACING: Final = frozenset({"cpu", "memory"})
"""The concerns that change a VM's place."""


@frozen
class Tuned:
    """A domain as it would be better."""

    document: bytes
    """The XML, in the encoding that it came in."""
    changes: tuple[Change, ...]
    advice: tuple[str, ...]
    """Improvements that are left to its owner, and what was left as it is."""
    gains: tuple[str, ...] = ()
    """The gains of the changes, in words; empty where there are none."""
    pieces: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The text before and after, piece by piece."""


def tune(  # noqa: PLR0913 -- the words of the command line
    document: str | bytes,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    name: str = "domain XML",
    only: Collection[str] = tuple(CONCERNS),
    keep_pins: bool = False,
    repin: bool = False,
    profile: str | None = None,
) -> Tuned:
    """Tune a domain's XML for ``place`` beside the VMs that made ``claims`` too.

    ``only`` names some of ``CONCERNS``: without ``memory`` vCPUs go to nodes that it is bound to
    already, without ``cpu`` it goes to theirs. Pins that are as good as the planner's stay; with
    ``keep_pins`` all that are there do, and the memory follows them. Those of a VM that another
    program places (``managers``) change with ``repin`` only, and those of one that does not fit
    this host not at all: ``advice`` says so. The words of ``profile``
    (``kvmhooks.spec.profiles``) that the domain has not are added. Raises ``InputError`` for what
    is no domain that kvmhooks can plan, and ``PlanError`` for a profile that does not fit the host.
    """
    source = parse(document, name)
    keep_pins = keep_pins or "cpu" not in only
    place_of = PlaceOf(
        source.root,
        inventory_on(place, claims),
        keep_pins=keep_pins,
        keep_nodes="memory" not in only,
    )
    plain = import_source(source).spec
    spec = plain if profile is None else import_source(source, profile).spec
    editor = Editor(source)

    @cache
    def own() -> Plan:
        return _plan_whole(plain, editor, place_of.inventory, ITS_OWN)

    def target() -> Target:
        """Return what runs it: of what a profile adds nothing is known but by what it has."""
        if profile is None:
            return ITS_OWN
        return attrs.evolve(OLDEST, known=frozenset(own().hardware.required))

    situation = Situation(
        editor=editor,
        spec=spec,
        host=place_of.inventory.host,
        make_plan=lambda: place_of.plan(_as_it_will_be(spec, editor), target()),
        with_and_without=(
            None
            if profile is None
            else lambda: (_plan_whole(spec, editor, place_of.inventory, target()), own())
        ),
        keep_pins=keep_pins,
        manager="" if repin else manager_of(source.root),
        is_own=is_written_by_kvmhooks(source.root),
    )
    for concern, steps in CONCERNS.items():
        if concern in only:
            editor.concern = concern
            for step in steps:
                step(situation)
    devices.advise(situation)
    if situation.is_own:
        situation.advice.append(_OWN)
    _advise_of_shares(situation)
    if PLACING & set(only) and not situation.stays:
        situation.advice += situation.plan.warnings_of_place
    if situation.manager and PLACING & set(only):
        _advise_of_place(situation, place_of)
    pieces = editor.result()
    changes = tuple(editor.changes)
    gains = gains_of(situation, place_of.inventory, place_of.pins)
    return Tuned(editor.written(pieces), changes, tuple(situation.advice), gains, pieces)


def parts_for(document: str | bytes, name: str) -> tuple[str, ...]:
    """Return the parts of the host that a domain's place depends on beside those of every VM.

    Raises ``InputError`` for what is no domain's XML.
    """
    root = parse(document, name).root
    has_devices = root.find("devices/hostdev") is not None or any(addresses_of(root))
    return ("pci",) if has_devices else ()


def _advise_of_place(situation: Situation, place_of: PlaceOf) -> None:
    """Tell of the place that another program chose, and of the one that would be chosen here."""
    if situation.placed is None:
        return
    pins = {pin.vcpu: pin.cpus for pin in situation.placed.vcpus}
    better = (
        []
        if pins == place_of.pins
        else [*gains_of_place(situation.placed, place_of.inventory, place_of.pins, pins)]
    )
    there = f"; others here would give it {', '.join(better)}" if better else ""
    situation.advice.append(
        f"{situation.manager} places this VM, so its pins and nodes stay{there} (--repin: "
        "change them all the same)"
    )


def _advise_of_shares(situation: Situation) -> None:
    """Tell of shares of caches and of bandwidth that the vCPUs have left."""
    if any(change.at.startswith("cputune/vcpupin") for change in situation.editor.changes):
        for tag in ("cachetune", "memorytune"):
            if situation.root.find(f"cputune/{tag}") is not None:
                situation.advice.append(f"cputune/{tag} names caches of the CPUs before: change it")


def _as_it_will_be(spec: VmSpec, editor: Editor) -> VmSpec:
    """Return the spec with the iothreads that the VM will have, as far as its place needs it."""
    ids = devices.iothreads_of(editor.source.root)
    for new in editor.children(editor.source.root, "iothreads"):
        if isinstance(new, New):
            ids = set(range(1, int(new.text) + 1))
    return devices.with_iothreads(_with_cells(spec, editor), ids)


def _plan_whole(spec: VmSpec, editor: Editor, inventory: Inventory, target: Target) -> Plan:
    """Return the plan of the VM with all that it has and will have, on any accelerator."""
    root = editor.source.root
    spec = attrs.evolve(spec, machine=attrs.evolve(spec.machine, accel="auto"))
    if root.find("launchSecurity") is not None:
        spec = attrs.evolve(spec, security=Security())  # its own word, in both renderings
    if root.get("type") == "kvm" and cpu.names_no_model(root.find("cpu")):
        spec = attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, model=CpuModel("host")))
    return plan(_with_cells(spec, editor), inventory, target=target)


def _with_cells(spec: VmSpec, editor: Editor) -> VmSpec:
    """Return the spec with as many guest cells as the domain has: they stay."""
    count = len(list(editor.source.root.all("cpu/numa/cell")))
    if not count or spec.memory.cell:
        return spec
    return attrs.evolve(spec, memory=attrs.evolve(spec.memory, cells=count))
