"""A plan into the claim that it makes on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.groups import LIBVIRT
from kvmhooks.isolate.pages import ANY_NODE
from kvmhooks.placement.model import Plan
from kvmhooks.values import PciAddress


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
    bound = () if driver == LIBVIRT else tuple(_bound(plan))
    settings = {"isolation.siblings": "idle"} if plan.idle else {}
    allowed = {use for device in plan.spec.pci for use in device.allow if device.managed}
    if bound and allowed:
        settings["devices.allow"] = ",".join(sorted(allowed))
    return Claim(
        driver=driver,
        uuid=plan.uuid,
        name=plan.name,
        exclusive=plan.exclusive,
        hugepages=tuple((node, size, count) for (node, size), count in sorted(pages.items())),
        strict=plan.spec.isolation.strict,
        settings=tuple(sorted(settings.items())),
        devices=tuple(map(str, _devices(plan))) if plan.exclusive or bound else (),
        bound=tuple(map(str, bound)),
    )


def _devices(plan: Plan) -> Iterator[PciAddress]:
    """What the guest has interrupts of, in the order of the XML."""
    yield from (device.chosen for device in plan.spec.pci)
    yield from (net.address for net in plan.spec.net if net.address is not None)


def _bound(plan: Plan) -> Iterator[PciAddress]:
    """What goes to ``vfio-pci`` for the VM; under libvirt that is libvirt's own to do."""
    spec = plan.spec
    yield from (device.chosen for device in spec.pci if device.managed)
    yield from (net.address for net in spec.net if net.address is not None and net.managed)
    yield from (drive.address for drive in spec.nvme if drive.managed)
