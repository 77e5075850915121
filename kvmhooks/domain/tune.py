"""An existing domain made better: what improves is changed, every other byte stays.

Each concern looks at what the domain says and at the plan for its VM, and asks the editor for what
should stand there; what stands there already is no change. So running it on its own output changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import attrs
from attrs import frozen

from kvmhooks.domain import tune_cpu, tune_devices, tune_guest, tune_memory
from kvmhooks.domain.edit import Change, Editor, New
from kvmhooks.domain.importing import import_source
from kvmhooks.domain.situation import Situation
from kvmhooks.domain.source import parse
from kvmhooks.host.model import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.placement import Plan, plan
from kvmhooks.spec.model import VmSpec

Step = Callable[[Situation], None]

CONCERNS: Final[dict[str, tuple[Step, ...]]] = {
    "disks": (tune_devices.iothreads, tune_devices.aio),
    "network": (tune_devices.queues,),
    "cpu": (tune_cpu.pins, tune_cpu.model, tune_cpu.topology, tune_guest.hints),
    "memory": (tune_memory.cells, tune_memory.nodes, tune_memory.balloon),
    "clock": (tune_guest.clock,),
    "features": (tune_guest.hyperv,),
}
"""Every concern with its steps, in their order: pins need to know the iothreads."""


@frozen
class Tuned:
    """A domain as it would be better."""

    document: bytes
    """The XML, in the encoding that it came in."""
    changes: tuple[Change, ...]
    advice: tuple[str, ...]
    """What would be better and is left to its owner."""


def tune(
    document: str | bytes,
    host: Host,
    claims: Sequence[Claim] = (),
    *,
    name: str = "domain XML",
    only: Collection[str] = tuple(CONCERNS),
    keep_pins: bool = False,
) -> Tuned:
    """Tune a domain's XML for ``host`` beside the VMs that made ``claims``.

    ``only`` names some of ``CONCERNS``. With ``keep_pins`` the pins that are there stay, and the
    memory follows them. Raises ``InputError`` for what is no domain that kvmhooks can plan, and
    ``PlanError`` when its VM does not fit the host.
    """
    source = parse(document, name)
    spec = import_source(source).spec
    editor = Editor(source)
    situation = Situation(
        editor=editor,
        spec=spec,
        host=host,
        make_plan=partial(_plan, spec, editor, host, claims),
        keep_pins=keep_pins,
    )
    for concern, steps in CONCERNS.items():
        if concern in only:
            editor.concern = concern
            for step in steps:
                step(situation)
    tune_devices.advise(situation)
    result = editor.result()
    return Tuned(result, tuple(editor.changes), tuple(situation.advice))


def _plan(spec: VmSpec, editor: Editor, host: Host, claims: Sequence[Claim]) -> Plan:
    """The plan of the VM with the iothreads that it will have."""
    root = editor.source.root
    ids = tune_devices.iothreads_of(root)
    for new in editor.children(root, "iothreads"):
        if isinstance(new, New):
            ids = set(range(1, int(new.text) + 1))
    memory = spec.memory
    if root.find("cpu/numa/cell") is not None and not memory.cell:
        memory = attrs.evolve(memory, cells=len(list(root.all("cpu/numa/cell"))))  # they stay
    spec = attrs.evolve(tune_devices.with_iothreads(spec, ids), memory=memory)
    return plan(spec, host, claims)
