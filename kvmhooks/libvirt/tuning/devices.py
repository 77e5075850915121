"""Improvements of disks and interfaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs

from kvmhooks.libvirt.edit.editor import Editor, New
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.cpu import cpu_set, is_dedicated, wants_exclusive
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.machine.domain_reading import number
from kvmhooks.machine.iothreads import count_for
from kvmhooks.spec.model import Disk, VmSpec
from kvmhooks.spec.security import Security
from kvmhooks.values import CpuSet, union

MAX_QUEUES: Final = 8
"""Each queue of an interface is a vhost thread on the host; more than this rarely pays."""

_TAPS: Final = {"network", "bridge", "direct"}
"""Interfaces whose tap libvirt makes, with as many queues as it is told."""


def iothreads(situation: Situation) -> None:
    """Add an iothread for each virtio disk without: requests do not wait for QEMU's main loop.

    As many iothreads as there are, else one for each such disk, one for two vCPUs at most. A VM
    with CPUs of its own gets them with a pin apart from those, or not at all: its start would be
    refused (``kvmhooks.isolate.claims.domain_xml``).
    """
    root, editor = situation.root, situation.editor
    if situation.is_own:
        return
    waiting = list(_without_iothread(situation))
    if not waiting or situation.spec.cpu.iothreads == 0:  # a profile's word
        return
    ids = sorted(iothreads_of(root))
    why = "requests do not wait for QEMU's main loop"
    if not ids:
        ids = list(range(1, count_for(disks=len(waiting), vcpus=situation.vcpus) + 1))
        element = root.find("iothreads")
        if element is not None:
            return  # somebody said that there are to be none
        cpus = _cpus_for_more(situation)
        if cpus is None:
            situation.advice.append(
                "iothreads: none are added: a VM with CPUs of its own needs a pin for each, and "
                "there is no cputune/emulatorpin to take it from"
            )
            return
        editor.add(root, New("iothreads", text=str(len(ids))), why)
        for iothread in ids if cpus else ():
            attributes = {"iothread": str(iothread), "cpuset": str(cpus)}
            apart = "beside QEMU's other threads, apart from the vCPUs"
            editor.add(situation.child("cputune", apart), New("iothreadpin", attributes), apart)
    for at, element in enumerate(waiting):
        driver = editor.child(element, "driver", why)
        if isinstance(driver, New) and element.tag == "disk":
            driver.attributes["name"] = "qemu"
        editor.set(driver, "iothread", str(ids[at % len(ids)]), why)


def _cpus_for_more(situation: Situation) -> CpuSet | None:
    """Return the CPUs of more threads of QEMU, where a VM may have CPUs of its own.

    Those of its emulator; none where the vCPUs share theirs, or ``cpu.pins`` will see to it; None
    where nothing says any, and each thread must have some.
    """
    root = situation.root
    is_exclusive = wants_exclusive(root)
    emulator = root.find("cputune/emulatorpin")
    if emulator is not None:
        is_apart = is_exclusive or is_dedicated(root, situation.vcpus)
        return cpu_set(emulator, "cpuset") if is_apart else CpuSet()
    is_pinned = situation.is_pinning and not situation.stays
    own = union(situation.pins.values()) if is_exclusive and is_pinned else CpuSet()
    return CpuSet() if not is_exclusive or (is_pinned and situation.plan.emulator - own) else None


def iothreads_after(editor: Editor) -> set[int]:
    """Return the ids of the iothreads that there will be."""
    ids = iothreads_of(editor.source.root)
    for new in editor.children(editor.source.root, "iothreads"):
        if isinstance(new, New):
            ids = set(range(1, int(new.text) + 1))
    return ids


def iothreads_of(root: Element) -> set[int]:
    """Return the ids of the iothreads: those listed, and as many more as the count asks for.

    libvirt fills the list with the lowest free numbers (``virDomainIOThreadIDDefArrayInit()``,
    src/conf/domain_conf.c).
    """
    listed = {
        number(iothread.get("id", ""), f"{iothread.path}@id")
        for iothread in root.all("iothreadids/iothread")
    }
    element = root.find("iothreads")
    count = 0 if element is None else number(element.text.strip(), "iothreads")
    fresh = 1
    while len(listed) < min(count, 1024):
        listed.add(fresh)
        fresh += 1
    return listed


def with_iothreads(spec: VmSpec, ids: Iterable[int]) -> VmSpec:
    """Return a spec as far as its VM's place depends on it: with these iothreads, for any host.

    Where its disks are, with which accelerator it runs elsewhere and how its memory is encrypted
    there is of no matter here; nor is how its interfaces are plugged in, which the domain says.
    """
    numbers = tuple(sorted(ids))
    disks = (Disk(path=Path("/dev/null"), iothreads=numbers),) if numbers else ()
    machine = attrs.evolve(spec.machine, accel="auto")
    return attrs.evolve(
        spec, disk=disks, net=(), filesystem=(), input=(), machine=machine, security=Security()
    )


def _without_iothread(situation: Situation) -> Iterator[Element]:
    """Yield disks on virtio-blk and controllers of virtio-scsi (formatdomain: «iothread»)."""
    for disk in situation.devices("disk"):
        target, driver = disk.find("target"), disk.find("driver")
        is_virtio = target is not None and target.get("bus") == "virtio"
        address = disk.find("address")
        is_pci = address is None or address.get("type") == "pci"
        is_local = disk.get("type") != "vhostuser"
        has = driver is not None and (
            driver.get("iothread") is not None or driver.find("iothreads") is not None
        )
        if is_virtio and is_pci and is_local and not has:
            yield disk
    for controller in situation.devices("controller"):
        driver = controller.find("driver")
        is_scsi = controller.get("type") == "scsi" and controller.get("model") == "virtio-scsi"
        if is_scsi and (driver is None or driver.get("iothread") is None):
            yield controller


def aio(situation: Situation) -> None:
    """Have block devices bypass the host's page cache, with the kernel's own asynchronous I/O.

    The guest has a cache of its own. A file is left as it is: its file system may know neither
    (O_DIRECT).
    """
    if situation.is_own:
        return
    why = "a block device needs no second cache and no threads"
    for disk in situation.devices("disk"):
        is_device = disk.get("type") == "block" and disk.get("device", "disk") == "disk"
        driver = disk.find("driver")
        attributes = {} if driver is None else driver.attributes
        if not is_device or {"cache", "io"} & attributes.keys():
            continue
        target = situation.editor.child(disk, "driver", why)
        if isinstance(target, New):
            target.attributes.setdefault("name", "qemu")
        situation.editor.set(target, "cache", "none", why)
        situation.editor.set(target, "io", "native", why)


def queues(situation: Situation) -> None:
    """Add a queue for each vCPU, up to eight, for virtio interfaces whose tap libvirt makes."""
    count = min(situation.vcpus, MAX_QUEUES)
    if count < 2 or not situation.is_kvm or situation.is_own:
        return
    why = "each vCPU sends and receives on a queue of its own"
    for interface in situation.devices("interface"):
        model, driver = interface.find("model"), interface.find("driver")
        is_virtio = model is not None and model.get("type", "").startswith("virtio")
        is_vhost = driver is None or driver.get("name", "vhost") == "vhost"
        is_asked = driver is not None and driver.get("queues") is not None
        if interface.get("type") in _TAPS and is_virtio and is_vhost and not is_asked:
            target = situation.editor.child(interface, "driver", why)
            if target.get("name") is None:
                situation.editor.set(target, "name", "vhost", why)
            situation.editor.set(target, "queues", str(count), why)


def advise(situation: Situation) -> None:
    """Name the emulated devices: a guest with virtio's drivers does better without them."""
    for disk in situation.devices("disk"):
        target = disk.find("target")
        bus = "" if target is None else target.get("bus", "")
        if disk.get("device", "disk") == "disk" and bus in {"ide", "sata", "fdc", "usb"}:
            situation.advice.append(f"{disk.path}: {bus} is emulated: virtio is quicker")
    for interface in situation.devices("interface"):
        model = interface.find("model")
        kind = "" if model is None else model.get("type", "")
        if interface.get("type") != "hostdev" and not kind.startswith("virtio"):
            shown = kind or "libvirt's default model"
            situation.advice.append(f"{interface.path}: {shown} is emulated: virtio is quicker")
