"""The predicates by which the table says what an expert would choose, each as a function.

A predicate takes what was planned and the value that the table gives it, and yields what is wrong.
``CpuSet`` lists are the kernel's. Predicates of one VM hold for each VM of an entry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvmhooks.host import Host
from kvmhooks.placement import Plan, Together
from kvmhooks.values import CpuSet, union

Found = Iterator[str]


@dataclass(frozen=True)
class Placed:
    """One VM in its place, and the host's caches and cores by CPU."""

    plan: Plan
    host: Host

    @property
    def pins(self) -> CpuSet:
        """The CPUs of the dedicated vCPUs."""
        return union(pin.cpus for pin in self.plan.vcpus if pin.vcpu in self.plan.dedicated)

    @property
    def floats(self) -> CpuSet:
        """The CPUs that the other vCPUs float over."""
        return union(pin.cpus for pin in self.plan.vcpus if pin.vcpu not in self.plan.dedicated)

    @property
    def iothreads(self) -> CpuSet:
        """The CPUs of the iothreads."""
        return union(pin.cpus for pin in self.plan.iothreads)

    @property
    def nodes(self) -> CpuSet:
        """The nodes of the cells' memory."""
        return CpuSet(cell.node for cell in self.plan.cells if cell.node is not None)

    @property
    def told(self) -> str:
        """All that the plan says to people, a sentence a line."""
        return "\n".join((*self.plan.why, *self.plan.warnings))

    def siblings(self, cpus: CpuSet) -> CpuSet:
        """Return all threads of the cores that these CPUs are of."""
        return union(self.host.cpu(cpu).siblings or CpuSet([cpu]) for cpu in cpus)

    def cores(self, cpus: CpuSet) -> int:
        """Return the number of cores that these CPUs are of."""
        return len({str(self.siblings(CpuSet([cpu]))) for cpu in cpus})

    def caches(self, level: int, cpus: CpuSet) -> list[CpuSet]:
        """Return the CPUs of each cache of a level, not for instructions, that these CPUs use."""
        return [
            cache.cpus
            for cache in self.host.caches or ()
            if cache.level == level and cache.type != "Instruction" and cache.cpus & cpus
        ]


def pins_within(placed: Placed, sets: list[str]) -> Found:
    """All dedicated vCPUs are within one of these sets."""
    if not placed.pins or not any(placed.pins <= CpuSet.parse(one_of) for one_of in sets):
        yield f"vCPUs on {placed.pins}"


def float_within(placed: Placed, sets: list[str]) -> Found:
    """The floating vCPUs are within one of these sets."""
    if not placed.floats or not any(placed.floats <= CpuSet.parse(one_of) for one_of in sets):
        yield f"vCPUs float over {placed.floats}"


def float_at_least(placed: Placed, least: int) -> Found:
    """They float over so many CPUs."""
    if len(placed.floats) < least:
        yield f"vCPUs float over {placed.floats}"


def cores(placed: Placed, number: int) -> Found:
    """The dedicated vCPUs are on exactly so many host cores."""
    if placed.cores(placed.pins) != number:
        yield f"{placed.cores(placed.pins)} cores: {placed.pins}"


def threads(placed: Placed, number: int) -> Found:
    """The guest sees so many threads in a core."""
    if placed.plan.topology.threads != number:
        yield f"guest threads {placed.plan.topology.threads}"


def l3(placed: Placed, number: int) -> Found:
    """The dedicated vCPUs are below so many L3 caches."""
    found = placed.caches(3, placed.pins)
    if len(found) != number:
        yield f"{len(found)} L3 caches"


def l3_apart(placed: Placed, value: bool) -> Found:  # noqa: FBT001 -- the table's own true
    """Nothing of the host or of QEMU is below an L3 of the dedicated vCPUs."""
    yield from _apart(placed, 3, value=value)


def l2_clean(placed: Placed, value: bool) -> Found:  # noqa: FBT001
    """Nothing of the host or of QEMU shares an L2 with a dedicated vCPU."""
    yield from _apart(placed, 2, value=value)


def _apart(placed: Placed, level: int, *, value: bool) -> Found:
    plan = placed.plan
    others = plan.housekeeping | plan.emulator | placed.iothreads
    near = union(placed.caches(level, placed.pins)) & others
    if bool(near) == value:
        yield f"host or QEMU on {near}, below an L{level} of the vCPUs"


def idle(placed: Placed, value: bool) -> Found:  # noqa: FBT001
    """The siblings of the dedicated vCPUs' CPUs are nobody's."""
    rest = placed.siblings(placed.pins) - placed.pins
    if (rest <= placed.plan.idle and bool(rest)) != value:
        yield f"idle {placed.plan.idle}, siblings {rest}"


def emulator_within(placed: Placed, cpus: str) -> Found:
    """QEMU's main loop is within this set."""
    if not placed.plan.emulator <= CpuSet.parse(cpus):
        yield f"emulator on {placed.plan.emulator}"


def emulator_on_node(placed: Placed, value: bool) -> Found:  # noqa: FBT001
    """QEMU's main loop and iothreads are on CPUs of the VM's nodes."""
    near = union(placed.host.node(node).cpus or CpuSet() for node in placed.nodes)
    if (placed.plan.emulator | placed.iothreads <= near) != value:
        yield f"emulator on {placed.plan.emulator}, iothreads on {placed.iothreads}"


def iothreads_within(placed: Placed, cpus: str) -> Found:
    """The iothreads, of which there are some, are within this set."""
    if not placed.iothreads or not placed.iothreads <= CpuSet.parse(cpus):
        yield f"iothreads on {placed.iothreads or 'no CPU'}"


def iothreads_own(placed: Placed, value: bool) -> Found:  # noqa: FBT001
    """The iothreads share no core with the emulator and the host's own CPUs."""
    others = placed.siblings(placed.plan.emulator | placed.plan.housekeeping)
    if (bool(placed.iothreads) and placed.iothreads.isdisjoint(others)) != value:
        yield f"iothreads on {placed.iothreads}, emulator on {placed.plan.emulator}"


def host_within(placed: Placed, cpus: str) -> Found:
    """All CPUs kept for the host are within this set."""
    if not placed.plan.housekeeping <= CpuSet.parse(cpus):
        yield f"host on {placed.plan.housekeeping}"


def host_has(placed: Placed, cpus: str) -> Found:
    """These CPUs are kept for the host."""
    if not CpuSet.parse(cpus) <= placed.plan.housekeeping:
        yield f"host on {placed.plan.housekeeping}"


def nodes(placed: Placed, sets: list[str]) -> Found:
    """The memory is on exactly one of these sets of nodes."""
    if str(placed.nodes) not in {str(CpuSet.parse(one_of)) for one_of in sets}:
        yield f"nodes {placed.nodes}"


def cells(placed: Placed, number: int) -> Found:
    """The guest has so many NUMA cells."""
    if len(placed.plan.cells) != number:
        yield f"{len(placed.plan.cells)} cells"


def even(placed: Placed, value: bool) -> Found:  # noqa: FBT001
    """Each cell has as many vCPUs as any other."""
    sizes = {len(cell.vcpus) for cell in placed.plan.cells}
    if (len(sizes) == 1) != value:
        yield f"cells of {sorted(sizes)} vCPUs"


def page_kib(placed: Placed, sizes: list[int]) -> Found:
    """The memory is made of pages of one of these sizes."""
    found = {cell.page_kib for cell in placed.plan.cells}
    if not found <= set(sizes):
        yield f"pages of {sorted(found)} KiB"


def memory_mode(placed: Placed, mode: str) -> Found:
    """The memory is bound to its nodes in this way."""
    if placed.plan.memory_mode != mode:
        yield f"memory {placed.plan.memory_mode}"


def told(placed: Placed, patterns: list[str]) -> Found:
    """The plan says something that each of these expressions finds, in any case of letters."""
    for pattern in patterns:
        if not re.search(pattern, placed.told, re.IGNORECASE):
            yield f"not told: {pattern}"


def untold(placed: Placed, patterns: list[str]) -> Found:
    """The plan says nothing that one of these expressions finds."""
    for pattern in patterns:
        if re.search(pattern, placed.told, re.IGNORECASE):
            yield f"told: {pattern}"


OF_ONE: Mapping[str, Callable[[Placed, Any], Found]] = {
    predicate.__name__: predicate
    for predicate in (
        *(pins_within, float_within, float_at_least, cores, threads, l3, l3_apart, l2_clean, idle),
        *(emulator_within, emulator_on_node, iothreads_within, iothreads_own),
        *(host_within, host_has, nodes, cells, even, page_kib, memory_mode, told, untold),
    )
}
"""Predicates of one VM."""


def placed_exactly(together: Together, number: int) -> Found:
    """So many of the VMs fit, and no more."""
    if len(together.plans) != number:
        yield f"{len(together.plans)} VMs placed"


def placed_at_least(together: Together, number: int) -> Found:
    """So many of the VMs fit, or more."""
    if len(together.plans) < number:
        yield f"{len(together.plans)} VMs placed"


def emulator_load_most(together: Together, most: float) -> Found:
    """No CPU has more main loops than that, where each counts evenly over the CPUs it may use."""
    load: Counter[int] = Counter()
    for plan in together.plans:
        load.update(dict.fromkeys(plan.emulator, 1 / max(len(plan.emulator), 1)))
    if load and max(load.values()) > most:
        yield f"{max(load.values()):g} main loops on a CPU"


def refused(together: Together, patterns: list[str]) -> Found:
    """Some VM is refused, and each refusal says what each of these expressions finds."""
    if not together.refused:
        yield "not refused"
    for name, error in together.refused.items():
        for pattern in patterns:
            if not re.search(pattern, str(error), re.IGNORECASE):
                yield f"{name}: refusal does not say: {pattern}"


OF_ALL: Mapping[str, Callable[[Together, Any], Found]] = {
    "placed": placed_exactly,
    "placed_at_least": placed_at_least,
    "emulator_load_most": emulator_load_most,
    "refused": refused,
}
"""Predicates of all VMs of an entry together."""


def always(placed: Placed) -> Found:
    """Yield what no expert would do, whatever the entry says."""
    plan = placed.plan
    dedicated = [pin for pin in plan.vcpus if pin.vcpu in plan.dedicated]
    if any(len(pin.cpus) != 1 for pin in dedicated) or len(placed.pins) != len(dedicated):
        yield "a dedicated vCPU has not one CPU of its own"
    if len(plan.housekeeping) < 2:
        yield f"the host keeps {plan.housekeeping or 'no CPU'}"
    others = plan.emulator | placed.iothreads | plan.housekeeping
    if shared := placed.siblings(placed.pins) & others:
        yield f"host or QEMU on {shared}, a core of dedicated vCPUs"
    width = plan.topology.threads
    if plan.dedicated and placed.cores(placed.pins) != len(placed.pins) // width:
        yield f"guest threads {width} on {placed.cores(placed.pins)} host cores"
    for at in range(0, len(plan.vcpus), width):
        guest_core = union(pin.cpus for pin in plan.vcpus[at : at + width])
        if placed.cores(guest_core) > 1 and guest_core <= placed.pins:
            yield f"the threads of a guest core on {guest_core}"
    kinds = {placed.host.cpu(cpu).kind for cpu in placed.pins}
    if len(kinds) > 1 and not re.search("kinds|efficiency", placed.told, re.IGNORECASE):
        yield f"two kinds of cores without a word: {placed.pins}"


def failures(wanted: Mapping[str, Any], together: Together, host: Host) -> list[str]:
    """Return what of one table of predicates does not hold for what was planned."""
    found: list[str] = []
    if "refused" not in wanted:
        found += [f"{name}: refused: {error}" for name, error in together.refused.items()]
    for name, value in wanted.items():
        if name == "either":
            tried = [failures({**other}, together, host) for other in value]
            if all(tried):
                found.append(" or ".join("; ".join(each) for each in tried))
        elif name in OF_ALL:
            found += OF_ALL[name](together, value)
        else:
            for plan in together.plans:
                found += (
                    f"{plan.name}: {name}: {wrong}"
                    for wrong in OF_ONE[name](Placed(plan, host), value)
                )
    return found
