"""The small devices: shared folders, sockets, random numbers, TPM, watchdog, panic, balloon."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of


def devices(plan: Plan) -> list[Element]:
    """Each device that the spec asks for."""
    return [
        *_filesystems(plan),
        *_iommu(plan),
        *_vsock(plan),
        *_rng(plan),
        *_tpm(plan),
        *_watchdog(plan),
        *_panic(plan),
        *_balloon(plan),
    ]


def _filesystems(plan: Plan) -> list[Element]:
    """Folders that virtiofsd serves, which libvirt starts."""
    said = []
    for at, shared in enumerate(plan.spec.filesystem):
        children = [
            element("driver", {"type": "virtiofs", "queue": shared.queue_size}),
            element("source", {"dir": shared.path}),
            element("target", {"dir": shared.tag}),
            *([element("readonly")] if shared.readonly else []),
            address_of(plan, f"fs{at}"),
        ]
        attributes = {"type": "mount", "accessmode": "passthrough"}
        said.append(element("filesystem", attributes, children))
    return said


def _iommu(plan: Plan) -> list[Element]:
    kind = plan.spec.iommu.model
    if kind == "none":
        return []
    if kind == "virtio":
        return [element("iommu", {"model": "virtio"}, [address_of(plan, "iommu")])]
    many = "on" if len(plan.vcpus) > 255 else None
    driver = {"intremap": "on", "caching_mode": "on", "eim": many}
    return [element("iommu", {"model": "intel"}, [element("driver", driver)])]


def _vsock(plan: Plan) -> list[Element]:
    if not plan.spec.vsock.enabled:
        return []
    cid = element("cid", {"auto": "no", "address": plan.hardware.cid})
    return [element("vsock", {"model": "virtio"}, [cid, address_of(plan, "vsock")])]


def _rng(plan: Plan) -> list[Element]:
    rng = plan.spec.rng
    if rng.source == "none":
        return []
    limited = {} if rng.rate is None else {"bytes": int(rng.rate), "period": rng.period}
    if rng.source == "builtin":
        backend = element("backend", {"model": "builtin"})
    else:
        backend = element("backend", {"model": "random"}, text="/dev/urandom")
    children = [*([element("rate", limited)] if limited else []), backend]
    return [element("rng", {"model": "virtio"}, [*children, address_of(plan, "rng")])]


def _tpm(plan: Plan) -> list[Element]:
    model = plan.spec.tpm.model
    if model == "none":
        return []
    backend = element("backend", {"type": "emulator", "version": "2.0"})
    return [element("tpm", {"model": f"tpm-{model}"}, [backend])]


def _watchdog(plan: Plan) -> list[Element]:
    watchdog = plan.spec.watchdog
    if watchdog.model == "none":
        return []
    where = [address_of(plan, "watchdog")] if watchdog.model == "i6300esb" else []
    return [element("watchdog", {"model": watchdog.model, "action": watchdog.action}, where)]


def _panic(plan: Plan) -> list[Element]:
    model = plan.spec.panic.model
    if model == "none":
        return []
    if model == "isa":
        return [element("panic", {"model": "isa"})]
    return [element("panic", {"model": "pvpanic"}, [address_of(plan, "panic")])]


def _balloon(plan: Plan) -> list[Element]:
    balloon = plan.spec.balloon
    if not balloon.enabled:
        return []
    attributes = {
        "model": "virtio",
        "autodeflate": "on" if balloon.deflate_on_oom else None,
        "freePageReporting": "on" if balloon.free_page_reporting else None,
    }
    return [element("memballoon", attributes, [address_of(plan, "balloon")])]
