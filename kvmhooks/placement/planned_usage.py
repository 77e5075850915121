"""The holdings of a planned VM, for the plans of others."""

from __future__ import annotations

from collections import Counter

from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.machine.confidential import KEYS
from kvmhooks.placement.model import Plan
from kvmhooks.values import CpuSet


def of_plan(plan: Plan, *, is_mapped: bool = False) -> Holding:
    """Return what a VM holds that was started, or will be, as planned."""
    pages: Counter[tuple[int, int]] = Counter()
    memory: Counter[int] = Counter()
    added = plan.spec.memory.added_kib()
    for cell in plan.cells:
        node = ANY_NODE if cell.node is None else cell.node
        if cell.is_huge:
            pages[node, cell.page_kib] += cell.pages
        else:
            memory[node] += cell.memory_kib
        memory[node] += added.get(cell.id, 0)
    floats = Counter(pin.cpus for pin in plan.vcpus if pin.vcpu not in plan.dedicated)
    security = plan.hardware.security
    key = "" if security is None else KEYS[security.type]
    promised = tuple((node, size, count) for (node, size), count in sorted(pages.items()))
    return Holding(
        name=plan.name,
        uuid=plan.uuid,
        exclusive=plan.exclusive,
        dedicated=plan.dedicated_cpus - plan.exclusive,
        idle=plan.idle,
        helpers=plan.emulator if plan.dedicated else CpuSet(),
        floating=tuple(sorted(floats.items(), key=lambda item: item[0].first())),
        memory=tuple(sorted((node, kib) for node, kib in memory.items() if kib)),
        hugepages=() if is_mapped else promised,
        ways=tuple((share.cache, share.mask) for share in plan.caches if share.type != "data"),
        bandwidth=plan.bandwidth,
        pci=tuple(address for _, address in plan.spec.functions()),
        mdevs=tuple(str(mdev.chosen) for mdev in plan.spec.mdev),
        key=key,
        has_key=bool(key) and is_mapped,
    )
