"""The gains of a tuned domain, for people: how its VM lies before and after, by the pins alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from kvmhooks.inventory.inventory import Inventory
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.placement import Plan
from kvmhooks.values import CpuSet, union
from kvmhooks.wording import counted

_KINDS: Final = {"0x01": "disk", "0x02": "network card", "0x03": "graphics card"}
"""The base class of a PCI device (PCI Code and ID Assignment Specification), and what it is."""

_PINS: Final = "cputune/vcpupin"
_PLACES: Final = {
    _PINS: "",
    "cputune/emulatorpin": "QEMU's other threads beside the vCPUs",
    "cputune/iothreadpin": "QEMU's other threads beside the vCPUs",
    "numatune": "memory of the vCPUs' node",
    "vcpu@": "",
    "cpu/numa": "guest nodes as the host's",
    "cpu/topology": "cores and threads as the host's",
}
"""The places of what a plan changes, and what that gains; the rest is counted by its concern."""

_PLACED: Final = tuple(_PLACES)


def gains_of(
    situation: Situation, inventory: Inventory, own: Mapping[int, CpuSet]
) -> tuple[str, ...]:
    """Return the gains of the changes: the place's, then the number of those of each concern."""
    changes = situation.editor.changes
    placing = [change for change in changes if change.at.startswith(_PLACED)]
    gains: list[str] = []
    if any(change.at.startswith(_PINS) for change in placing):
        gains += gains_of_place(situation.plan, inventory, own, situation.pins)
    told = (text for at, text in _PLACES.items() if any(c.at.startswith(at) for c in placing))
    gains += [text for text in dict.fromkeys(told) if text]
    if placing and not gains:
        gains.append("pins that the plan's score is better with")
    others = Counter(change.concern for change in changes if not change.at.startswith(_PLACED))
    gains += [f"{concern} ({counted(count, 'change')})" for concern, count in others.items()]
    return tuple(gains)


def gains_of_place(
    plan: Plan, inventory: Inventory, own: Mapping[int, CpuSet], pins: Mapping[int, CpuSet]
) -> Iterator[str]:
    """Yield what is better about the CPUs of a VM on ``pins`` than on its own."""
    host = inventory.host
    after = union(pins.values()) & host.online
    if len(own) < len(plan.vcpus):
        nodes = {host.cpu(cpu).node for cpu in after}
        yield f"a place for each vCPU, on {counted(len(nodes), 'node')}"
        return
    before = union(own.values())
    yield from _leaves(plan, inventory, before, after)
    here = before & host.online
    for noun, at in (("node", "node"), ("L3 cache", "l3")):
        counts = [len({getattr(host.cpu(cpu), at) for cpu in cpus}) for cpus in (after, here)]
        if counts[0] < counts[1]:
            yield f"{counted(counts[0], noun)} instead of {counts[1]}"
    if len(union(own[vcpu] for vcpu in plan.dedicated)) < len(plan.dedicated):
        yield "a CPU for each vCPU"
    if _shared(plan, pins, inventory) < _shared(plan, own, inventory):
        yield "whole cores"
    yield from _isolated(plan, inventory, own)
    yield from _devices(inventory, plan, here, after)


def _leaves(plan: Plan, inventory: Inventory, before: CpuSet, after: CpuSet) -> Iterator[str]:
    """Yield whose CPUs the VM is on no longer."""
    if not before <= inventory.host.online:
        yield "CPUs that are online"
    for other in inventory.others_of(plan.uuid):
        held = other.alone(inventory.host)
        if after.isdisjoint(held) and not before.isdisjoint(held):
            yield f"none of {other.name}'s CPUs"
    kept = plan.housekeeping
    if plan.dedicated and after.isdisjoint(kept) and not before.isdisjoint(kept):
        yield "no CPU that is kept for the host"


def _isolated(plan: Plan, inventory: Inventory, own: Mapping[int, CpuSet]) -> Iterator[str]:
    kernel = inventory.host.kernel
    isolated = (kernel.isolated if kernel else None) or CpuSet()
    before = union(own[vcpu] for vcpu in plan.dedicated)
    if plan.spec.cpu.realtime and plan.dedicated_cpus <= isolated and not before <= isolated:
        yield "CPUs that the kernel isolates"


def _shared(plan: Plan, pins: Mapping[int, CpuSet], inventory: Inventory) -> int:
    """Return how many guest cores have no core to themselves, or are on several."""
    host, threads = inventory.host, plan.topology.threads
    on: defaultdict[CpuSet, set[int]] = defaultdict(set)
    split = set()
    for vcpu in plan.dedicated:
        cores = {host.core_of(cpu) for cpu in pins[vcpu] & host.online}
        for core in cores:
            on[core].add(vcpu // threads)
        first = pins[vcpu - vcpu % threads] & host.online
        if not all(first and first <= core for core in cores):
            split.add(vcpu // threads)
    together = {guest for guests in on.values() if len(guests) > 1 for guest in guests}
    return len(together | split)


def _devices(inventory: Inventory, plan: Plan, here: CpuSet, after: CpuSet) -> Iterator[str]:
    """Yield the devices on whose node the VM is only by its new pins."""
    host = inventory.host
    given = {device.address for device in plan.pci}
    for device in host.pci or ():
        if device.address not in given or device.node is None:
            continue
        nodes = [{host.cpu(cpu).node for cpu in cpus} for cpus in (here, after)]
        if device.node in nodes[1] and device.node not in nodes[0]:
            kind = _KINDS.get((device.class_ or "")[:4], "device")
            yield f"its {kind}'s node ({device.address})"
