"""A plan into the claim that it makes on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.groups import LIBVIRT
from kvmhooks.isolate.pages import ANY_NODE
from kvmhooks.placement.mediated import mdevs_of
from kvmhooks.placement.model import Plan
from kvmhooks.placement.virtual import pools_of, settings_of
from kvmhooks.spec.model import Pci
from kvmhooks.values import PciAddress


def claim(plan: Plan, *, driver: str = "kvm-launch") -> Claim:
    """The claim of a VM that ``driver`` runs (``qemu`` for libvirt's).

    It equals the one that the libvirt hook makes from the XML rendered from this plan, but for
    the driver, and for what libvirt does itself: it binds devices and schedules threads.
    """
    pages: Counter[tuple[int, int]] = Counter()
    for cell in plan.cells:
        if cell.is_huge:
            node = ANY_NODE if cell.node is None else cell.node
            pages[node, cell.page_kib] += cell.pages
    settings = {"isolation.siblings": "idle"} if plan.idle else {}
    of_devices = device_settings(plan, driver=driver)
    settings |= of_devices
    is_libvirts = driver == LIBVIRT
    if plan.exclusive and not is_libvirts and (scheduler := scheduler_of(plan)):
        settings["threads.vcpus"] = scheduler
    has_bound = not is_libvirts or "devices.managed" in of_devices
    bound = tuple(_bound(plan, is_libvirts=is_libvirts)) if has_bound else ()
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


def scheduler_of(plan: Plan) -> str:
    """The real-time class of its vCPUs and their priority, as ``fifo:1``; empty for none."""
    threads = plan.spec.tuning.vcpus
    if threads.scheduler in {"fifo", "rr"}:
        return f"{threads.scheduler}:{threads.priority or 1}"
    return "fifo:1" if plan.spec.cpu.realtime and plan.dedicated else ""


def device_settings(plan: Plan, *, driver: str) -> dict[str, str]:
    """What the policy says of devices: the pools of functions, who binds them, what may end.

    Under libvirt it is for virtual functions only, which the hook makes: libvirt manages the rest.
    """
    devices = plan.spec.pci
    pools = pools_of([device.sriov for device in devices if device.sriov is not None])
    is_libvirts = driver == LIBVIRT
    mdevs = mdevs_of(plan.spec)
    if is_libvirts and not (pools or mdevs):
        return {}
    settings = {"devices.managed": "yes"} if is_libvirts and pools else {}
    if mdevs:
        settings["devices.mdevs"] = mdevs
    if pools:
        settings["devices.pools"] = ",".join(f"{pf}={count}" for pf, count in pools.items())
        functions = [settings_of(device.sriov) for device in devices if device.sriov is not None]
        if any(functions):
            settings["devices.functions"] = ";".join(filter(None, functions))
    bound = [device for device in devices if _is_bound(device, is_libvirts=is_libvirts)]
    allowed = {use for device in bound for use in device.allow}
    if allowed:
        settings["devices.allow"] = ",".join(sorted(allowed))
    return settings


def _devices(plan: Plan) -> Iterator[PciAddress]:
    """What the guest has interrupts of, in the order of the XML."""
    yield from (device.chosen for device in plan.spec.pci)
    yield from (net.address for net in plan.spec.net if net.address is not None)


def _bound(plan: Plan, *, is_libvirts: bool) -> Iterator[PciAddress]:
    """What goes to ``vfio-pci`` for the VM."""
    spec = plan.spec
    for device in spec.pci:
        if _is_bound(device, is_libvirts=is_libvirts):
            yield device.chosen
    for net in spec.net:
        if net.address is not None and net.managed is not is_libvirts:
            yield net.address
    yield from (drive.address for drive in spec.nvme if drive.managed is not is_libvirts)


def _is_bound(device: Pci, *, is_libvirts: bool) -> bool:
    """Whether we bind a device: under libvirt what that does not manage.

    It would give a virtual function to the host's own driver afterwards, and the pool would never
    be removed.
    """
    return device.sriov is not None or device.managed is not is_libvirts
