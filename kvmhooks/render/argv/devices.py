"""The small devices: shared folders, sockets, random numbers, TPM, watchdog, panic, balloon."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.argv.plug import plug, where
from kvmhooks.render.sockets import socket_of


def arguments(plan: Plan) -> list[str]:
    """Each device that the spec asks for."""
    return [
        *_filesystems(plan),
        *_vsock(plan),
        *_rng(plan),
        *_tpm(plan),
        *_watchdog(plan),
        *_panic(plan),
        *_balloon(plan),
    ]


def iommu(plan: Plan) -> list[str]:
    """The guest's IOMMU, which must be there before the devices that it translates for.

    intel-iommu remaps interrupts, which x2APIC addresses beyond 255 need, and with KVM only if the
    I/O APIC is in QEMU (docs/system/i386: ``kernel-irqchip=split``).
    """
    kind = plan.spec.iommu.model
    if kind == "virtio":
        return option("device", plug(plan, "virtio-iommu", "iommu"))
    if kind == "none":
        return []
    many = len(plan.vcpus) > 255
    remapping = {"intremap": "on", "caching-mode": True, "eim": "on" if many else None}
    return option("device", {"driver": "intel-iommu", "id": "iommu0", **remapping})


def _filesystems(plan: Plan) -> list[str]:
    """Folders that virtiofsd serves on a socket."""
    said: list[str] = []
    for at, shared in enumerate(plan.spec.filesystem):
        name = f"fs{at}"
        said += ["-chardev", f"socket,id={name}-socket,path={socket_of(plan, name)}"]
        said += option(
            "device",
            {
                **plug(plan, "vhost-user-fs", name),
                "chardev": f"{name}-socket",
                "tag": shared.tag,
                "queue-size": shared.queue_size,
            },
        )
    return said


def _vsock(plan: Plan) -> list[str]:
    if not plan.spec.vsock.enabled:
        return []
    device = plug(plan, "vhost-vsock", "vsock")
    return option("device", {**device, "guest-cid": plan.hardware.cid})


def _rng(plan: Plan) -> list[str]:
    rng = plan.spec.rng
    if rng.source == "none":
        return []
    kind = "rng-builtin" if rng.source == "builtin" else "rng-random"
    file = None if rng.source == "builtin" else "/dev/urandom"
    limited = {} if rng.rate is None else {"max-bytes": int(rng.rate), "period": rng.period}
    return [
        *option("object", {"qom-type": kind, "id": "rng-source", "filename": file}),
        *option("device", {**plug(plan, "virtio-rng", "rng"), "rng": "rng-source", **limited}),
    ]


def _tpm(plan: Plan) -> list[str]:
    """Swtpm's control socket (docs/specs/tpm.rst)."""
    model = plan.spec.tpm.model
    if model == "none":
        return []
    return [
        *("-chardev", f"socket,id=tpm-socket,path={socket_of(plan, 'tpm')}"),
        *("-tpmdev", "emulator,id=tpm,chardev=tpm-socket"),
        *option("device", {"driver": f"tpm-{model}", "id": "tpm0", "tpmdev": "tpm"}),
    ]


def _watchdog(plan: Plan) -> list[str]:
    """q35's own is there in any case, and switched off by a strap of the chipset."""
    watchdog = plan.spec.watchdog
    if watchdog.model == "none":
        return []
    if watchdog.model == "itco":
        device = ["-global", "ICH9-LPC.noreboot=off"]
    else:
        place = {"driver": "i6300esb", "id": "watchdog", **where(plan, "watchdog")}
        device = option("device", place)
    return [*device, "-action", f"watchdog={watchdog.action}"]


def _panic(plan: Plan) -> list[str]:
    model = plan.spec.panic.model
    if model == "pci":
        return option("device", {"driver": "pvpanic-pci", "id": "panic", **where(plan, "panic")})
    return option("device", {"driver": "pvpanic"}) if model == "isa" else []


def _balloon(plan: Plan) -> list[str]:
    balloon = plan.spec.balloon
    if not balloon.enabled:
        return []
    return option(
        "device",
        {
            **plug(plan, "virtio-balloon", "balloon"),
            "deflate-on-oom": True if balloon.deflate_on_oom else None,
            "free-page-reporting": True if balloon.free_page_reporting else None,
        },
    )
