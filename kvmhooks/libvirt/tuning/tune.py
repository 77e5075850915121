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


@frozen
class Tuned:
    """A domain as it would be better."""

    document: bytes
    """The XML, in the encoding that it came in."""
    changes: tuple[Change, ...]
    advice: tuple[str, ...]
    """Improvements that are left to its owner."""
    pieces: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The text before and after, piece by piece."""


def tune(
    document: str | bytes,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    name: str = "domain XML",
    only: Collection[str] = tuple(CONCERNS),
    keep_pins: bool = False,
    profile: str | None = None,
) -> Tuned:
    """Tune a domain's XML for ``place`` beside the VMs that made ``claims`` too.

    ``only`` names some of ``CONCERNS``. With ``keep_pins`` the pins that are there stay, and the
    memory follows them. The words of ``profile`` (``kvmhooks.spec.profiles``) that the domain has
    not are added. Raises ``InputError`` for what is no domain that kvmhooks can plan, and
    ``PlanError`` when its VM does not fit the host.
    """
    source = parse(document, name)
    plain = import_source(source).spec
    spec = plain if profile is None else import_source(source, profile).spec
    editor = Editor(source)
    inventory = inventory_on(place, claims)

    @cache
    def own() -> Plan:
        return _plan_whole(plain, editor, inventory, ITS_OWN)

    def target() -> Target:
        """Return what runs it: of what a profile adds nothing is known but by what it has."""
        if profile is None:
            return ITS_OWN
        return attrs.evolve(OLDEST, known=frozenset(own().hardware.required))

    situation = Situation(
        editor=editor,
        spec=spec,
        host=inventory.host,
        make_plan=lambda: _plan(spec, editor, inventory, target()),
        with_and_without=(
            None
            if profile is None
            else lambda: (_plan_whole(spec, editor, inventory, target()), own())
        ),
        keep_pins=keep_pins,
    )
    for concern, steps in CONCERNS.items():
        if concern in only:
            editor.concern = concern
            for step in steps:
                step(situation)
    devices.advise(situation)
    pieces = editor.result()
    changes = tuple(editor.changes)
    return Tuned(editor.written(pieces), changes, tuple(situation.advice), pieces)


def _plan(spec: VmSpec, editor: Editor, inventory: Inventory, target: Target) -> Plan:
    """Return the plan of the VM with the iothreads that it will have."""
    root = editor.source.root
    ids = devices.iothreads_of(root)
    for new in editor.children(root, "iothreads"):
        if isinstance(new, New):
            ids = set(range(1, int(new.text) + 1))
    return plan(devices.with_iothreads(_with_cells(spec, editor), ids), inventory, target=target)


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
