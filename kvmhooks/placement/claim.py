"""A plan into the claim that it makes on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.kind import Demand, from_settings, to_settings
from kvmhooks.isolate.kinds.mdevs import MdevDemand
from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettingsDemand
from kvmhooks.isolate.vm.cgroups import LIBVIRT
from kvmhooks.machine.mdev import mdevs_of
from kvmhooks.machine.sriov import pools_of, settings_of
from kvmhooks.placement.model import Plan
from kvmhooks.policy import SETTINGS, check, value_of
from kvmhooks.spec.model import Net, Nvme, Pci, VmSpec
from kvmhooks.spec.tuning import policy_of
from kvmhooks.values import PciAddress

_TOLD: Final = ("isolation.exclusive", "isolation.strict", "isolation.siblings")
"""The settings that are told with the CPUs."""

L3: Final = 3
"""The level of the caches that a VM may have parts of."""


def claim(plan: Plan, *, driver: str = "kvm-launch") -> Claim:
    """Return the claim of a VM that ``driver`` runs (``qemu`` for libvirt's).

    It equals the one that the libvirt hook makes from the XML rendered from this plan, but for
    the driver, and for what libvirt does itself: it binds devices, schedules threads, and has the
    groups for parts of caches.
    """
    is_libvirts = driver == LIBVIRT
    own = _own_settings(plan, is_libvirts=is_libvirts)
    settings = check({name: each.value for name, each in plan.administered.items()} | own)
    origins = {
        name: plan.administered[name].file
        for name in settings
        if name in plan.administered and name not in own
    }
    is_strict = settings.pop("isolation.strict", "no") == "yes"
    settings.pop("isolation.exclusive", None)
    is_managed = settings.get("devices.managed") == "yes"
    made = [*from_settings(settings)]
    allow = [use for use in settings.pop("devices.allow", "none").split(",") if use != "none"]
    bound = [*_bound(plan, is_libvirts=is_libvirts)] if is_managed or not is_libvirts else []
    if not is_libvirts:
        settings.pop("devices.managed", None)
    kept = tuple(sorted(settings.items()))
    has_pages = value_of(kept, "memory.hugepages") == "allocate"
    return Claim(
        driver=driver,
        uuid=plan.uuid,
        name=plan.name,
        exclusive=plan.exclusive,
        strict=is_strict,
        settings=kept,
        origins=tuple(sorted(origins.items())),
        disks=_disks(plan) if any(name.startswith("storage.") for name in settings) else (),
        caches=_caches(plan) if is_libvirts else (),
        devices=tuple(map(str, _devices(plan))) if plan.exclusive or bound else (),
        demands=[
            *(_hugepages(plan) if has_pages else ()),
            *made,
            *(FunctionDemand(str(address), allow) for address in bound),
        ],
    )


def metadata_settings(plan: Plan) -> dict[str, str]:
    """Return the settings that the metadata in a domain's XML has, in the order of their table.

    They are the VM's own: the administrator's are his, also later.
    """
    own = {
        "isolation.exclusive": "yes" if plan.spec.isolation.exclusive else "no",
        "isolation.strict": "yes" if plan.spec.isolation.strict else "no",
        **_own_settings(plan, is_libvirts=True),
    }
    return {name: own[name] for name in SETTINGS if name in own}


def asked_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return what a VM asks of the host, whoever runs it: each setting with the file that says it.

    Values that are so by default are left out, and what else the plan tells: its own CPUs.
    """
    own = _own_settings(plan, is_libvirts=False)
    settings = check({name: each.value for name, each in plan.administered.items()} | own)
    return {
        name: (
            settings[name],
            _source(plan.spec, name) if name in own else plan.administered[name].file,
        )
        for name in SETTINGS
        if name in settings and name not in _TOLD
    }


def _source(spec: VmSpec, name: str) -> str:
    """Return what says a setting of the VM's own: its profile, or its file."""
    is_given = any(default.at == f"policy.{name}" for default in spec.applied)
    return f"profile {spec.profile}" if is_given else spec.source


def _own_settings(plan: Plan, *, is_libvirts: bool) -> dict[str, str]:
    """Return what a VM says of its own, with the words that stand elsewhere in vm.toml."""
    spec = plan.spec
    settings = policy_of(spec)
    for name in ("exclusive", "strict"):
        is_on = getattr(spec.isolation, name)
        if is_on is not None:
            settings[f"isolation.{name}"] = "yes" if is_on else "no"
    if plan.idle:
        settings["isolation.siblings"] = "idle"
    if not is_libvirts or "threads.vcpus" in plan.administered:
        # Of libvirt's VMs it is <vcpusched>, which the administrator's word must not come before.
        scheduler = scheduler_of(plan) if plan.exclusive else ""
        settings |= {"threads.vcpus": scheduler} if scheduler else {}
    return settings | _device_settings(plan, is_libvirts=is_libvirts)


def _device_settings(plan: Plan, *, is_libvirts: bool) -> dict[str, str]:
    """Return the words on devices: pools of functions, who binds them, what may end.

    In metadata they are of virtual functions and mediated devices, which the hook makes: libvirt
    manages the rest.
    """
    settings = {"devices.managed": "yes"} if is_libvirts and _has_functions(plan) else {}
    demands: dict[str, tuple[Demand, ...]] = {}
    for demand in _demands(plan):
        demands[demand.KIND] = (*demands.get(demand.KIND, ()), demand)
    settings |= to_settings(demands)
    allowed = _allowed(plan, is_libvirts=is_libvirts)
    if allowed and (settings or not is_libvirts):
        settings["devices.allow"] = ",".join(allowed)
    if is_libvirts and "devices.managed" in plan.administered and _is_unmanaged(plan):
        settings.setdefault("devices.managed", "no")
    return settings


def scheduler_of(plan: Plan) -> str:
    """Return the real-time class of its vCPUs and their priority, as ``fifo:1``; empty for none."""
    threads = plan.spec.tuning.vcpus
    if threads.scheduler in {"fifo", "rr"}:
        return f"{threads.scheduler}:{threads.priority or 1}"
    return "fifo:1" if plan.spec.cpu.realtime and plan.dedicated else ""


def _hugepages(plan: Plan) -> list[HugePageDemand]:
    """Return the huge pages of all cells, by node and size."""
    pages: Counter[tuple[int, int]] = Counter()
    for cell in plan.cells:
        if cell.is_huge:
            node = ANY_NODE if cell.node is None else cell.node
            pages[node, cell.page_kib] += cell.pages
    return [HugePageDemand(node, size, count) for (node, size), count in sorted(pages.items())]


def _disks(plan: Plan) -> tuple[str, ...]:
    """Return the disks of the host that the VM has whole, in the order of the XML."""
    return tuple(str(disk.path) for disk in plan.spec.disk if disk.is_block_device)


def _caches(plan: Plan) -> tuple[tuple[int, str, int, int], ...]:
    """Return the parts of caches, as ``<cachetune>`` has them."""
    return tuple((L3, share.type, share.cache, share.size_kib) for share in plan.caches)


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


def _is_unmanaged(plan: Plan) -> bool:
    """Return whether the VM says of a device that others bind it."""
    spec = plan.spec
    devices: tuple[Pci | Net | Nvme, ...] = (*spec.pci, *spec.net, *spec.nvme)
    return any(not device.managed for device in devices)


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
