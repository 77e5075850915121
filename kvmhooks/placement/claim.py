"""A plan into the claim that it makes on the host."""

from __future__ import annotations

from collections import Counter

from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.pages import ANY_NODE
from kvmhooks.placement.model import Plan


def claim(plan: Plan, *, driver: str = "kvm-launch") -> Claim:
    """The claim of a VM that ``driver`` runs (``qemu`` for libvirt's).

    It equals the one that the libvirt hook makes from the XML rendered from this plan, but for
    the driver.
    """
    pages: Counter[tuple[int, int]] = Counter()
    for cell in plan.cells:
        if cell.is_huge:
            node = ANY_NODE if cell.node is None else cell.node
            pages[node, cell.page_kib] += cell.pages
    return Claim(
        driver=driver,
        uuid=plan.uuid,
        name=plan.name,
        exclusive=plan.exclusive,
        hugepages=tuple((node, size, count) for (node, size), count in sorted(pages.items())),
        strict=plan.spec.isolation.strict,
        settings=(("isolation.siblings", "idle"),) if plan.idle else (),
    )
