"""The needs of a VM on this host: looked at before anything is started, all of it at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from kvm_launch.prepare import helper_programs, paths, persistent_state, shared_memory
from kvm_launch.prepare.disks import roots_path
from kvm_launch.prepare.user import User
from kvm_launch.prepare.vfio import UNLIMITED, locked_memory
from kvmhooks.devices.rom import MAX_BYTES, Image, mismatch, parse_rom, read_rom
from kvmhooks.errors import HostError, Problem, SpecError
from kvmhooks.host import Host
from kvmhooks.placement import launchers
from kvmhooks.placement.pci_selection import is_meant
from kvmhooks.spec.model import Net, VmSpec
from kvmhooks.values import PciAddress

INTERFACES = Path("/sys/class/net")
PCI_DEVICES = Path("/sys/bus/pci/devices")
KVM = Path("/dev/kvm")


@frozen
class Wanted:
    """A file that has to be there."""

    at: str
    path: Path
    mode: int
    """The access that has to be possible, as access(2) has it."""
    expected: str
    is_coming: bool = False
    """It is made before the VM starts, where there is none."""


def check(
    spec: VmSpec, user: User | None = None, *, has_libvirt: bool = False, binds: bool = False
) -> None:
    """Raise ``SpecError`` with everything that is missing, or that ``user`` may not open.

    libvirt starts the programs that a device needs; keys that the launcher does not carry out are
    refused. ``binds`` says whether the devices that are
    managed will be bound to ``vfio-pci``.
    """
    roots = [at for at, disk in enumerate(spec.disk) if user is not None and roots_path(disk)]
    users = [at for at in range(len(spec.disk)) if at not in roots]
    problems = (
        *_lacking([*_files(spec), *_disks(spec, users)], user),
        *_lacking(list(_disks(spec, roots)), None),
        *_interfaces(spec),
        *_owners(spec, user),
        *launchers.foreign(spec, launchers.LIBVIRT if has_libvirt else launchers.KVM_LAUNCH),
        *([] if has_libvirt else _helpers(spec, user)),
        *_devices(spec, binds=binds),
        *([] if has_libvirt else locked(spec)),
    )
    if problems:
        raise SpecError(spec.source, problems)


def check_accel(spec: VmSpec, user: User | None) -> None:
    """Raise ``SpecError`` when KVM is settled on and ``user`` may not open it."""
    if user is None or spec.machine.accel != "kvm":
        return
    wanted = [Wanted("machine.user", KVM, os.R_OK | os.W_OK, "a KVM to use")]
    problems = tuple(_lacking(wanted, user))
    if problems:
        raise SpecError(spec.source, problems)


def check_roms(spec: VmSpec, host: Host, user: User | None) -> None:
    """Raise ``SpecError`` for option ROMs that cannot be read, or are of other devices."""
    problems = tuple(_roms(spec, host, user))
    if problems:
        raise SpecError(spec.source, problems)


def _roms(spec: VmSpec, host: Host, user: User | None) -> Iterator[Problem]:
    for index, given in enumerate(spec.pci):
        if given.rom is None:
            continue
        at = f"pci[{index}].rom"
        try:
            images = _rom(given.rom, user)
        except HostError as error:
            yield Problem(at, str(error), "an option ROM of the device")
            continue
        meant = [device for device in host.pci or () if is_meant(given, device)]
        wrong = [mismatch(images, device.vendor, device.device) for device in meant]
        if wrong and all(wrong):
            yield Problem(at, f"{given.rom}: {wrong[0]}", f"a ROM of {meant[0].address}")


def _rom(path: Path, user: User | None) -> tuple[Image, ...]:
    """Return the images of a ROM that ``user`` may read. Raises ``HostError``."""
    if user is None:
        return read_rom(path)
    try:
        data = paths.read_as(path, user, limit=MAX_BYTES + 1)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}, expected a file with an option ROM") from error
    return parse_rom(path, data)


def _owners(spec: VmSpec, user: User | None) -> Iterator[Problem]:
    """Yield the taps that cannot be opened: one can by its owner (``ip tuntap add … user NAME``),
    or by root.
    """
    for index, net in enumerate(spec.net):
        if user is None or net.type != "tap" or net.device is None:
            continue
        owner = INTERFACES / net.device / "owner"
        if owner.exists() and owner.read_text().strip() != str(user.uid):
            expected = f"a tap that belongs to machine.user: ip tuntap add … user {user.name}"
            yield Problem(f"net[{index}].device", repr(str(net.device)), expected)


def _files(spec: VmSpec) -> Iterator[Wanted]:
    boot = spec.boot
    named = {"boot.kernel": boot.kernel, "boot.initrd": boot.initrd}
    if isinstance(boot.firmware, Path):
        named["boot.firmware"] = boot.firmware
    for at, path in named.items():
        if path is not None:
            yield Wanted(at, path, os.R_OK, "a file that can be read")


def _disks(spec: VmSpec, indices: Iterable[int]) -> Iterator[Wanted]:
    seed = set() if spec.cloud_init is None else {spec.cloud_init.seed}
    coming = {image.path for image in spec.image} | seed
    for index in indices:
        disk = spec.disk[index]
        mode = os.R_OK if disk.readonly else os.R_OK | os.W_OK
        expected = "an image to read" if disk.readonly else "an image to read and write"
        yield Wanted(f"disk[{index}].path", disk.path, mode, expected, disk.path in coming)


def _lacking(wanted: Sequence[Wanted], user: User | None) -> Iterator[Problem]:
    """Say what of it ``user`` does not find, or may not open."""
    found = paths.look([file.path for file in wanted], user) if wanted else []
    for file, seen in zip(wanted, found, strict=True):
        if seen.kind == "nothing" and file.is_coming:
            continue
        what = {"folder": "a folder", "nothing": "no file"}.get(seen.kind, "no permission for")
        if seen.kind == "folder" or not seen.may(file.mode):
            yield Problem(file.at, f"{what} {str(file.path)!r}", file.expected)


def _helpers(spec: VmSpec, user: User | None) -> Iterator[Problem]:
    """Yield what other programs, and what is kept for them, lack."""
    yield from helper_programs.problems(spec, user)
    yield from persistent_state.problems(spec, user)
    yield from shared_memory.problems(spec, user)
    for at, net in enumerate(spec.net):
        if os.geteuid() != 0 and (name := _opened(net)):
            expected = "root, or a tap of this user's own, passt or --libvirt"
            yield Problem(f"net[{at}]", f"a device that needs {name}", expected)


def _devices(spec: VmSpec, *, binds: bool) -> Iterator[Problem]:
    """Yield what must be bound to ``vfio-pci`` already; one without an address is chosen later."""
    given: dict[str, list[tuple[PciAddress | None, bool]]] = {
        "pci": [(device.address, device.managed) for device in spec.pci],
        "nvme": [(device.address, device.managed) for device in spec.nvme],
        "net": [(device.address, device.managed) for device in spec.net],
    }
    devices = {
        f"{table}[{at}].address": address
        for table, entries in given.items()
        for at, (address, is_managed) in enumerate(entries)
        if address is not None and not (binds and is_managed)
    }
    for at, address in devices.items():
        driver = PCI_DEVICES / str(address) / "driver"
        if driver.resolve().name != "vfio-pci":
            found = f"{address}, bound to {driver.resolve().name if driver.exists() else 'nothing'}"
            expected = "a device that is bound to vfio-pci, managed = true as root, or --libvirt"
            yield Problem(at, found, expected)


def locked(spec: VmSpec) -> Iterator[Problem]:
    """Yield the memory that has to be locked and may not be: only root can raise its limit."""
    needed = locked_memory(spec)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if os.geteuid() == 0 or needed == 0 or limit == resource.RLIM_INFINITY:
        return
    if needed == UNLIMITED or limit < needed:
        least = "no limit" if needed == UNLIMITED else f"{needed // 1024} KiB or more"
        where = "memory.locked" if spec.memory.locked else "memory.size"
        found = f"a limit of {limit // 1024} KiB on memory that may be locked"
        yield Problem(where, found, f"{least} (`ulimit -l`, LimitMEMLOCK=), or root to start it")


def _opened(net: Net) -> str | None:
    """Return what opens the interface, where QEMU cannot do it by name."""
    if net.type == "macvtap":
        return "a macvtap device that is opened for it"
    many = net.type == "bridge" and (net.vhost or (net.queues or 1) > 1)
    return "taps that are opened for it" if many else None


def _interfaces(spec: VmSpec) -> Iterator[Problem]:
    for index, net in enumerate(spec.net):
        if net.device is None:
            continue
        is_there = (INTERFACES / net.device).exists()
        is_bridge = (INTERFACES / net.device / "bridge").exists()
        if not is_there or (net.type == "bridge" and not is_bridge):
            found = "no bridge" if is_there else "no interface"
            yield Problem(f"net[{index}].device", f"{found} {net.device!r}", f"a {net.type}")
