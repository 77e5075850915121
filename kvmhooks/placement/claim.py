"""A plan into the claim that it makes on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.kind import Demand, to_settings
from kvmhooks.isolate.kinds.mdevs import MdevDemand
from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettingsDemand
from kvmhooks.isolate.vm.cgroups import LIBVIRT
from kvmhooks.machine.mdev import mdevs_of
from kvmhooks.machine.sriov import pools_of, settings_of
from kvmhooks.placement.model import Plan
from kvmhooks.spec.model import Pci
from kvmhooks.values import PciAddress


def claim(plan: Plan, *, driver: str = "kvm-launch") -> Claim:
    """Return the claim of a VM that ``driver`` runs (``qemu`` for libvirt's).

    It equals the one that the libvirt hook makes from the XML rendered from this plan, but for
    the driver, and for what libvirt does itself: it binds devices and schedules threads.
    """
    pages: Counter[tuple[int, int]] = Counter()
    for cell in plan.cells:
        if cell.is_huge:
            node = ANY_NODE if cell.node is None else cell.node
            pages[node, cell.page_kib] += cell.pages
    settings = {"isolation.siblings": "idle"} if plan.idle else {}
    is_libvirts = driver == LIBVIRT
    is_managed = is_libvirts and _has_functions(plan)
    if is_managed:
        settings["devices.managed"] = "yes"
    if plan.exclusive and not is_libvirts and (scheduler := scheduler_of(plan)):
        settings["threads.vcpus"] = scheduler
    bound = [*_bound(plan, is_libvirts=is_libvirts)] if is_managed or not is_libvirts else []
    allow = _allowed(plan, is_libvirts=is_libvirts)
    return Claim(
        driver=driver,
        uuid=plan.uuid,
        name=plan.name,
        exclusive=plan.exclusive,
        strict=plan.spec.isolation.strict,
        settings=tuple(sorted(settings.items())),
        devices=tuple(map(str, _devices(plan))) if plan.exclusive or bound else (),
        demands=[
            *(HugePageDemand(node, size, count) for (node, size), count in sorted(pages.items())),
            *_demands(plan),
            *(FunctionDemand(str(address), allow) for address in bound),
        ],
    )


def scheduler_of(plan: Plan) -> str:
    """Return the real-time class of its vCPUs and their priority, as ``fifo:1``; empty for none."""
    threads = plan.spec.tuning.vcpus
    if threads.scheduler in {"fifo", "rr"}:
        return f"{threads.scheduler}:{threads.priority or 1}"
    return "fifo:1" if plan.spec.cpu.realtime and plan.dedicated else ""


def device_settings(plan: Plan) -> dict[str, str]:
    """Return the metadata's words on devices: pools of functions, who binds them, what may end.

    They are of virtual functions and mediated devices, which the hook makes: libvirt manages the
    rest.
    """
    settings = {"devices.managed": "yes"} if _has_functions(plan) else {}
    demands: dict[str, tuple[Demand, ...]] = {}
    for demand in _demands(plan):
        demands[demand.KIND] = (*demands.get(demand.KIND, ()), demand)
    settings |= to_settings(demands)
    allowed = _allowed(plan, is_libvirts=True)
    if settings and allowed:
        settings["devices.allow"] = ",".join(allowed)
    return settings


def _demands(plan: Plan) -> list[Demand]:
    """Return what is made for the VM: pools of functions, their settings, mediated devices."""
    functions = [device.sriov for device in plan.spec.pci if device.sriov is not None]
    settings = [(function, settings_of(function)) for function in functions]
    return [
        *(MdevDemand(*mdev) for mdev in mdevs_of(plan.spec)),
        *(VfPoolDemand(str(pf), count) for pf, count in pools_of(functions).items()),
        *(VfSettingsDemand(str(at.pf), int(at.vf), words) for at, words in settings if words),
    ]


def _has_functions(plan: Plan) -> bool:
    """Return whether the VM has devices of a pool, which libvirt must not manage."""
    return any(device.sriov is not None for device in plan.spec.pci)


def _allowed(plan: Plan, *, is_libvirts: bool) -> list[str]:
    """Return the uses of the host's that may end with the devices that we bind."""
    bound = [device for device in plan.spec.pci if _is_bound(device, is_libvirts=is_libvirts)]
    return sorted({use for device in bound for use in device.allow})


def _devices(plan: Plan) -> Iterator[PciAddress]:
    """Yield the devices whose interrupts the guest has, in the order of the XML."""
    yield from (device.chosen for device in plan.spec.pci)
    yield from (net.address for net in plan.spec.net if net.address is not None)


def _bound(plan: Plan, *, is_libvirts: bool) -> Iterator[PciAddress]:
    """Yield the devices that go to ``vfio-pci`` for the VM."""
    spec = plan.spec
    for device in spec.pci:
        if _is_bound(device, is_libvirts=is_libvirts):
            yield device.chosen
    for net in spec.net:
        if net.address is not None and net.managed is not is_libvirts:
            yield net.address
    yield from (drive.address for drive in spec.nvme if drive.managed is not is_libvirts)


def _is_bound(device: Pci, *, is_libvirts: bool) -> bool:
    """Return whether we bind a device: under libvirt one that libvirt does not manage.

    It would give a virtual function to the host's own driver afterwards, and the pool would never
    be removed.
    """
    return device.sriov is not None or device.managed is not is_libvirts
