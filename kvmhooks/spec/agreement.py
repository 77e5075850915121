"""Keys of devices and of the host's tuning that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvmhooks.errors import Problem
from kvmhooks.spec.model import VirtioMem, VmSpec
from kvmhooks.spec.network import Net
from kvmhooks.spec.present import DEVICES, devices_of
from kvmhooks.spec.security import SEV_ES, SNP_ALWAYS
from kvmhooks.spec.storage import Disk
from kvmhooks.spec.tuning import IoDevice

_NEEDS: Final = {
    "tap": "device",
    "bridge": "device",
    "macvtap": "device",
    "vhost-user": "socket",
    "vdpa": "path",
    "hostdev": "address",
}
"""Type of an interface: the key that says which one it is."""

_MEANT: Final = {
    "device": "the name of the {}",
    "socket": "the socket of the switch",
    "path": "a device such as /dev/vhost-vdpa-0",
    "address": "the PCI address of a virtual function",
}

_MIB: Final = 1 << 20


def disagreements(spec: VmSpec) -> Iterator[Problem]:
    """Yield what is wrong between keys that are each well-formed."""
    yield from _boot(spec)
    yield from _cpu(spec)
    yield from _memory(spec)
    for index, disk in enumerate(spec.disk):
        yield from _disk(disk, f"disk[{index}]")
    for index, net in enumerate(spec.net):
        yield from _net(net, f"net[{index}]")
    for index, helper in enumerate(spec.helper):
        if not helper.command or not helper.command[0].startswith("/"):
            found = repr(helper.command[0]) if helper.command else "nothing"
            yield Problem(f"helper[{index}].command", found, "a program by its whole path")
    yield from _made(spec)
    yield from _policy(spec)
    yield from _settings(spec)
    yield from _devices(spec)
    yield from _tuning(spec)
    if spec.machine.type == "microvm":
        yield from _microvm(spec)


def _boot(spec: VmSpec) -> Iterator[Problem]:
    boot = spec.boot
    if boot.firmware == "uefi" and boot.variables is None:
        yield Problem("boot.variables", "nothing", "the file with this VM's UEFI variables")


_OWN_KEYS: Final = {
    "migratable": "cpu.migratable",
    "host-cache-info": "cpu.caches",
    "l3-cache": "cpu.caches",
    "kvm": "cpu.hidden",
    "kvmclock": "clock.kvmclock",
    "hv-": "cpu.hyperv",
    "kvm-": "the keys of [cpu] for KVM's own features",
}
"""Properties of QEMU's ``-cpu`` that are no bits of CPUID: libvirt knows none of them as features.
"""


def _cpu(spec: VmSpec) -> Iterator[Problem]:
    seen = set()
    for index, feature in enumerate(spec.cpu.features):
        if feature[1:] in seen:
            yield Problem(f"cpu.features[{index}]", repr(feature), "each feature once")
        seen.add(feature[1:])
        for name, key in _OWN_KEYS.items():
            if feature[1:] == name or (name.endswith("-") and feature[1:].startswith(name)):
                yield Problem(f"cpu.features[{index}]", repr(feature), key)
    if spec.cpu.l3 is not None and spec.cpu.caches == "host":
        yield Problem("cpu.l3", repr(spec.cpu.l3), 'nothing beside cpu.caches = "host"')
    if spec.cpu.realtime and spec.tuning.vcpus.scheduler != "other":
        yield Problem("tuning.vcpus.scheduler", "cpu.realtime beside it", "one of the two")


def _made(spec: VmSpec) -> Iterator[Problem]:
    """Yield files that kvm-launch is to make and that the guest does not see as they are."""
    disks = {disk.path for disk in spec.disk}
    bases = {image.base for image in spec.image}
    made = {image.path: image.format for image in spec.image}
    for index, disk in enumerate(spec.disk):
        if made.get(disk.path, disk.format) != disk.format:
            expected = f'"{made[disk.path]}", as [[image]] makes it'
            yield Problem(f"disk[{index}].format", f'"{disk.format}"', expected)
    for index, image in enumerate(spec.image):
        if image.path not in disks | bases:
            found = f"{str(image.path)!r}, which no disk is"
            yield Problem(f"image[{index}].path", found, "the path of a disk")
    if spec.cloud_init is not None and spec.cloud_init.seed not in disks:
        found = f"{str(spec.cloud_init.seed)!r}, which no disk is"
        yield Problem("cloud_init.seed", found, "the path of a disk, with readonly = true")


def _memory(spec: VmSpec) -> Iterator[Problem]:
    memory = spec.memory
    if memory.backend == "file" and memory.path is None:
        yield Problem("memory.path", "nothing", 'the folder, for backend = "file"')
    if memory.backend == "ram" and (memory.hugepages or memory.share):
        why = "huge pages" if memory.hugepages else "memory that others map"
        yield Problem("memory.backend", '"ram"', f'"memfd" or "file" for {why}')
    if memory.prealloc is False and memory.hugepages:
        yield Problem("memory.prealloc", "false", "true: a guest dies where a huge page is missing")
    if memory.share is False:
        if spec.filesystem:
            yield Problem("memory.share", "false", "true: virtiofsd maps the guest's memory")
        if any(net.type == "vhost-user" for net in spec.net):
            yield Problem("memory.share", "false", "true: a vhost-user switch maps the guest's")
    yield from _growing(spec)


def _growing(spec: VmSpec) -> Iterator[Problem]:
    memory = spec.memory
    sizes = {
        **{f"memory.dimm[{at}]": each.size for at, each in enumerate(memory.dimm)},
        **{f"memory.virtio[{at}]": each.size for at, each in enumerate(memory.virtio)},
    }
    total = memory.size + sum(sizes.values())
    if memory.maximum is not None and memory.maximum < total:
        found = f"{memory.maximum}, with {total // _MIB}MiB there at the start"
        yield Problem("memory.maximum", found, "no less than that")
    if memory.slots is not None and memory.slots < len(memory.dimm):
        yield Problem("memory.slots", str(memory.slots), f"{len(memory.dimm)} at least")
    for at, size in sizes.items():
        if size == 0 or size % (2 * _MIB):
            yield Problem(f"{at}.size", repr(str(size)), "whole multiples of 2MiB")
    for index, each in enumerate(memory.virtio):
        yield from _virtio_mem(each, f"memory.virtio[{index}]")


def _virtio_mem(memory: VirtioMem, at: str) -> Iterator[Problem]:
    block = int(memory.block)
    if block < 2 * _MIB or block & (block - 1):
        yield Problem(f"{at}.block", repr(str(memory.block)), "a power of two from 2MiB on")
    elif memory.size % block or (memory.requested or 0) % block:
        yield Problem(f"{at}.size", repr(str(memory.size)), f"whole blocks of {memory.block}")
    if memory.requested is not None and memory.requested > memory.size:
        yield Problem(f"{at}.requested", repr(str(memory.requested)), f"{memory.size} at most")


def _disk(disk: Disk, at: str) -> Iterator[Problem]:
    yield from _queues(disk, at)
    if disk.aio == "native" and disk.cache != "none":
        yield Problem(f"{at}.aio", f'"native" with cache = "{disk.cache}"', 'cache = "none"')
    if disk.device == "cdrom" and disk.attached == "nvme":
        yield Problem(f"{at}.bus", '"nvme" for a cdrom', '"sata" or "virtio-scsi"')
    if disk.detect_zeroes == "unmap" and not disk.discard:
        yield Problem(f"{at}.detect_zeroes", '"unmap" without discard', '"on", or discard = true')
    if disk.shared and (disk.cache != "none" or disk.format != "raw"):
        yield Problem(f"{at}.shared", "true", 'format = "raw" and cache = "none"')
    block = disk.logical_block
    if block is not None and (not 512 <= block <= 32768 or block & (block - 1)):
        yield Problem(f"{at}.logical_block", repr(str(block)), "a power of two, 32KiB at most")
    limits = disk.throttle
    for kind in ("bytes", "operations") if limits is not None else ():
        parts = [getattr(limits, f"{way}_{kind}") for way in ("read", "write")]
        if getattr(limits, kind) is not None and any(parts):
            yield Problem(
                f"{at}.throttle.{kind}", "read or write beside it", "both together or each apart"
            )


def _queues(disk: Disk, at: str) -> Iterator[Problem]:
    bus = disk.attached
    if disk.iothread is not None and disk.iothreads:
        yield Problem(f"{at}.iothread", "iothreads beside it", "one of the two")
    if disk.served_by and bus in {"sata", "nvme"}:
        yield Problem(f"{at}.bus", f'"{bus}" with iothreads', '"virtio-blk" or "virtio-scsi"')
    if len(set(disk.iothreads)) != len(disk.iothreads):
        yield Problem(f"{at}.iothreads", str(list(disk.iothreads)), "each iothread once")


def _net(net: Net, at: str) -> Iterator[Problem]:
    needed = _NEEDS.get(net.type)
    for key, meant in _MEANT.items():
        value = getattr(net, key)
        if key == needed and value is None:
            expected = f'{meant.format(net.type)}: type is "{net.type}"'
            yield Problem(f"{at}.{key}", "nothing", expected)
    if net.model != "virtio" and net.type in {"hostdev", "vdpa", "vhost-user"}:
        yield Problem(f"{at}.model", f'"{net.model}"', f'"virtio": type is "{net.type}"')
    for key in ("rx_queue_size", "tx_queue_size"):
        size = getattr(net, key)
        if size is not None and size not in {256, 512, 1024}:
            yield Problem(f"{at}.{key}", str(size), "256, 512 or 1024")


def _policy(spec: VmSpec) -> Iterator[Problem]:
    """Yield bits of a policy that make another type of it, or none at all."""
    kind, policy = spec.security.type, spec.security.policy
    if policy is None:
        return
    bits = int(policy, 16)
    expected = ""
    if kind == "sev" and bits & SEV_ES:
        expected = f'bit 2 ({SEV_ES:#x}) clear, or type = "sev-es"'
    if kind == "sev-es" and not bits & SEV_ES:
        expected = f'bit 2 ({SEV_ES:#x}) set, or type = "sev"'
    if kind == "sev-snp" and not bits & SNP_ALWAYS:
        expected = f"bit 17 ({SNP_ALWAYS:#x}) set, as in every such policy"
    if expected:
        yield Problem("security.policy", f'{policy} with type = "{kind}"', expected)


def _settings(spec: VmSpec) -> Iterator[Problem]:
    """Yield settings of the host that do nothing for this VM, or contradict others."""
    storage, threads = spec.policy.storage, spec.policy.threads
    if not any(disk.is_block_device for disk in spec.disk):
        for key in ("scheduler", "requests"):
            value = getattr(storage, key)
            if value is not None:
                expected = "a disk of the host's, /dev/..., at disk[].path"
                yield Problem(f"policy.storage.{key}", repr(value), expected)
    if spec.policy.memory.hugepages == "keep" and spec.memory.allocate:
        yield Problem("memory.allocate", 'policy.memory.hugepages = "keep"', "one of the two")
    least, most = threads.uclamp_min, threads.uclamp_max
    if least is not None and most is not None and least > most:
        yield Problem("policy.threads.uclamp_min", str(least), f"at most uclamp_max, {most}")


def _devices(spec: VmSpec) -> Iterator[Problem]:
    for name in DEVICES:
        value = getattr(spec, name)
        if isinstance(value, tuple):
            for at, each in enumerate(value):
                yield from each.problems(spec, f"{name}[{at}]")
        elif value is not None:
            yield from value.problems(spec, name)


def _tuning(spec: VmSpec) -> Iterator[Problem]:
    tuning = spec.tuning
    for name in ("total", "vcpus", "emulator", "iothreads"):
        period = getattr(tuning, name).period
        if period is not None and period > 1_000_000:
            yield Problem(f"tuning.{name}.period", str(period), "a second at most: 1000000")
    for index, device in enumerate(tuning.io.device):
        if device == IoDevice(path=device.path):
            at = f"tuning.io.device[{index}]"
            yield Problem(at, f"{str(device.path)!r} alone", "a weight or a limit beside it")


def _microvm(spec: VmSpec) -> Iterator[Problem]:
    """Yield what a microvm has not: PCI, a chipset and flash (docs/system/i386/microvm.rst)."""
    there = {
        "pci": spec.pci,
        "mdev": spec.mdev,
        "memory.maximum": spec.memory.maximum is not None,
        "cpu.current": spec.cpu.current not in {None, spec.cpu.vcpus},
        "boot.firmware": spec.boot.firmware == "uefi",
        "clock.hpet": spec.clock.hpet,
        "security.type": spec.security.type != "none",
    }
    for present in devices_of(spec):
        there |= {present.path_of(key): True for key in present.device.not_on_microvm()}
    for at, is_there in there.items():
        if is_there:
            yield Problem(at, 'machine.type = "microvm"', "q35: microvm has no such thing")
    for index, disk in enumerate(spec.disk):
        if not disk.attached.startswith("virtio"):
            yield Problem(f"disk[{index}].bus", f'"{disk.attached}" on microvm', '"virtio-blk"')
    for index, net in enumerate(spec.net):
        if net.type == "hostdev" or net.model != "virtio":
            yield Problem(f"net[{index}].type", "a PCI device on microvm", "a virtio interface")
