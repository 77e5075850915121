"""The PCI devices of a host, from files.

The files of a device are those of the kernel's Documentation/ABI/testing/sysfs-bus-pci; those of
SR-IOV are explained in Documentation/PCI/pci-iov-howto.rst, the IOMMU groups in
Documentation/ABI/testing/sysfs-kernel-iommu_groups. On the live host ``kvmhooks.host.bus.udev``
finds the same facts through libudev; both end in ``make_devices``.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from kvmhooks.errors import ValueFormatError
from kvmhooks.host.bus.devices import MdevType, PciDevice, Sriov
from kvmhooks.host.files.addresses import ADDRESS, last_address
from kvmhooks.host.files.formats import split_lines, split_words
from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

PCI: Final = "sys/bus/pci/devices"
BLOCK: Final = "sys/block"
NET: Final = "sys/class/net"

ATTRIBUTES: Final = (
    "class",
    "vendor",
    "device",
    "numa_node",
    "boot_vga",
    "reset_method",
    "sriov_totalvfs",
    "sriov_numvfs",
    "sriov_vf_device",
    "sriov_offset",
    "sriov_stride",
)
LINKS: Final = ("driver", "iommu_group", "physfn")
MDEV: Final = "mdev_supported_types"

VIRTFN: Final = re.compile(r"virtfn(\d{1,5})", re.ASCII)
_WANTED: Final = re.compile(
    "|".join([*ATTRIBUTES, *LINKS, "reset", "net", MDEV, VIRTFN.pattern, r"virtio\d{1,5}"]),
    re.ASCII,
)
_ANY: Final = re.compile(r"[^/]{1,255}")
_HIDDEN_NVME: Final = re.compile(r"(nvme\d+)c\d+(n\d+)", re.ASCII)
_LARGE: Final = ("0x03", "0x12")
"""Displays and accelerators: what has BARs that a firmware may have no room for."""
_FUNCTIONS_LIMIT: Final = 16_384
"""Of a host: 64 cards with 256 functions each."""
_GROUP_LIMIT: Final = 1024
_BARS: Final = 6
_RESOURCE: Final = re.compile(r"0x([0-9a-f]{16}) 0x([0-9a-f]{16}) 0x([0-9a-f]{16})", re.ASCII)
_MEMORY: Final = 0x200
"""``IORESOURCE_MEM`` (linux/ioport.h)."""
_HEX: Final = re.compile(r"0x[0-9a-f]{1,8}", re.ASCII)
_INTEGER: Final = re.compile(r"-?\d{1,10}", re.ASCII)


@frozen
class FoundDevice:
    """One device as it was found: the text of its files and where its links lead."""

    name: str
    path: str
    attributes: Mapping[str, str] = field(factory=dict)
    links: Mapping[str, str] = field(factory=dict)
    """The last part of each target."""
    can_reset: bool = False
    is_parent: bool = False
    """Mediated devices can be made of it."""
    net: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


def read_pci(tree: Tree) -> tuple[PciDevice, ...] | None:
    """Read all devices, on the live host through libudev; None where there is no PCI."""
    if tree.is_live and tree.recorder is None:
        try:
            return import_module("kvmhooks.host.bus.udev").read_pci(tree)  # type: ignore[no-any-return]
        except (ImportError, OSError):
            # Without libudev or pyudev the files say the same.
            return read_pci_files(tree)
    return read_pci_files(tree)


def read_pci_files(tree: Tree) -> tuple[PciDevice, ...] | None:
    """Read all devices from files."""
    directory = tree.directory(PCI)
    if directory is None:
        return None
    net = _owners(tree, NET)
    block = _owners(tree, BLOCK)
    with directory:
        found = [
            device
            for name in _bounded(directory, directory.names(ADDRESS))
            if (device := _read_device(directory, name, net, block)) is not None
        ]
    return make_devices(tree, found)


def _bounded(directory: Directory, names: list[str]) -> list[str]:
    if len(names) > _FUNCTIONS_LIMIT:
        directory.tree.unread(directory.path, f"holds {len(names)} devices: the rest is left out")
    return names[:_FUNCTIONS_LIMIT]


def make_devices(tree: Tree, found: Iterable[FoundDevice]) -> tuple[PciDevice, ...]:
    """Make devices of what was found of them, by whatever way."""
    known = [(PciAddress.parse(device.name), device) for device in found]
    groups: dict[int, list[PciAddress]] = {}
    for address, device in known:
        group = _integer(tree, device, "iommu_group")
        if group is not None:
            groups.setdefault(group, []).append(address)
    for group, members in groups.items():
        if len(members) > _GROUP_LIMIT:
            tree.flaws.add(
                "sys/kernel/iommu_groups", f"{group} has {len(members)} devices: unknown"
            )
    groups = {group: members for group, members in groups.items() if len(members) <= _GROUP_LIMIT}
    return tuple(_make_device(tree, *device, groups) for device in sorted(known, key=_address))


def shown_block_name(name: str) -> str:
    """Return the name under which a path of a multipath NVMe namespace is used (``nvme0c1n1``)."""
    return _HIDDEN_NVME.sub(r"\1\2", name)


def _address(known: tuple[PciAddress, FoundDevice]) -> PciAddress:
    return known[0]


def _make_device(
    tree: Tree, address: PciAddress, device: FoundDevice, groups: Mapping[int, Sequence[PciAddress]]
) -> PciDevice:
    node = _integer(tree, device, "numa_node")
    group = _integer(tree, device, "iommu_group")
    methods = device.attributes.get("reset_method")
    boot_vga = device.attributes.get("boot_vga")
    return PciDevice(
        address=address,
        class_=_hex(tree, device, "class"),
        vendor=_hex(tree, device, "vendor"),
        device=_hex(tree, device, "device"),
        driver=device.links.get("driver"),
        node=None if node is None or node < 0 else node,
        iommu_group=group if group in groups else None,
        iommu_group_members=tuple(
            sorted(other for other in groups.get(group, ()) if other != address)
        )
        if group is not None
        else (),
        physfn=_linked_address(tree, device, "physfn"),
        sriov=_make_sriov(tree, device),
        mdev_types=_make_mdev_types(tree, device) if device.is_parent else (),
        bars=_make_bars(tree, device),
        reset_methods=None if methods is None else tuple(split_words(methods)),
        can_reset=device.can_reset,
        boot_vga=None if boot_vga is None else boot_vga == "1",
        net=tuple(sorted(tree.public(name) for name in set(device.net))),
        block=tuple(sorted(set(device.block))),
    )


def _make_mdev_types(tree: Tree, device: FoundDevice) -> tuple[MdevType, ...]:
    found: list[MdevType] = []
    directory = tree.directory(f"{device.path}/{MDEV}")
    if directory is None:
        return ()
    with directory:
        for name in directory.names(_ANY):
            kind = directory.child(name)
            if kind is not None:
                with kind:
                    text = kind.text("available_instances") or ""
                is_known = _INTEGER.fullmatch(text) is not None
                found.append(MdevType(name, int(text) if is_known else None))
    return tuple(sorted(found, key=_name_of))


def _make_bars(tree: Tree, device: FoundDevice) -> tuple[int, ...]:
    """Return the sizes from ``resource``: a line of start, end and flags for each BAR
    (sysfs-pci.rst).
    """
    if not (device.attributes.get("class") or "").startswith(_LARGE):
        return ()
    lines = split_lines(tree.text(f"{device.path}/resource") or "")[:_BARS]
    places = [_RESOURCE.fullmatch(line) for line in lines]
    known = [[int(word, 16) for word in place.groups()] for place in places if place]
    return tuple(end - start + 1 for start, end, flags in known if flags & _MEMORY and end)


def _name_of(kind: MdevType) -> str:
    return kind.name


def _make_sriov(tree: Tree, device: FoundDevice) -> Sriov | None:
    if "sriov_totalvfs" not in device.attributes:
        return None
    functions = {
        int(match[1]): address
        for name in device.links
        if (match := VIRTFN.fullmatch(name))
        and (address := _linked_address(tree, device, name)) is not None
    }
    total = _integer(tree, device, "sriov_totalvfs")
    number = _integer(tree, device, "sriov_numvfs")
    if number is not None and number != len(functions):
        where = f"{device.path}/sriov_numvfs"
        tree.flaws.add(where, f"says {number}, but {len(functions)} functions are linked")
    vf_device = device.attributes.get("sriov_vf_device")
    return Sriov(
        total_vfs=total,
        num_vfs=number,
        vfs=tuple(functions[index] for index in sorted(functions)),
        # The kernel prints this one without 0x (drivers/pci/iov.c).
        vf_device=f"0x{vf_device}" if vf_device else None,
        offset=_integer(tree, device, "sriov_offset"),
        stride=_integer(tree, device, "sriov_stride"),
    )


def _read_device(
    devices: Directory,
    name: str,
    net: Mapping[str, tuple[str, ...]],
    block: Mapping[str, tuple[str, ...]],
) -> FoundDevice | None:
    directory = devices.child(name)
    if directory is None:
        return None
    with directory:
        names = directory.names(_WANTED)
        texts = ((each, directory.text(each)) for each in names if each in ATTRIBUTES)
        targets = (
            (each, directory.link_name(each))
            for each in names
            if each in LINKS or VIRTFN.fullmatch(each)
        )
        return FoundDevice(
            name=name,
            path=directory.path,
            attributes={each: text for each, text in texts if text is not None},
            links={each: target for each, target in targets if target is not None},
            can_reset="reset" in names,
            is_parent=MDEV in names,
            net=(*net.get(name, ()), *_own_net(directory, names)),
            block=block.get(name, ()),
        )


def _own_net(directory: Directory, names: Sequence[str]) -> list[str]:
    """Return the interfaces that are listed below the device itself, or below its virtio device."""
    found = _listed(directory) if "net" in names else []
    for name in names:
        below = directory.child(name) if name.startswith("virtio") else None
        if below is not None:
            with below:
                found += _listed(below)
    return found


def _listed(parent: Directory) -> list[str]:
    directory = parent.child("net")
    if directory is None:
        return []
    with directory:
        return directory.names(_ANY)


def _owners(tree: Tree, path: str) -> dict[str, tuple[str, ...]]:
    """Return the names in a class by the PCI device to which their links lead."""
    directory = tree.directory(path)
    if directory is None:
        return {}
    owners: dict[str, tuple[str, ...]] = {}
    with directory:
        for name in directory.names(_ANY):
            owner = last_address(directory.link(name) or "")
            if owner is not None:
                shown = shown_block_name(name) if path == BLOCK else name
                owners[owner] = (*owners.get(owner, ()), shown)
    return owners


def _integer(tree: Tree, device: FoundDevice, name: str) -> int | None:
    text = device.attributes.get(name, device.links.get(name))
    if text is None:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    tree.flaws.add(f"{device.path}/{name}", f"found {text[:40]!r}, expected a whole number")
    return None


def _hex(tree: Tree, device: FoundDevice, name: str) -> str | None:
    text = device.attributes.get(name)
    if text is None or _HEX.fullmatch(text):
        return text
    tree.flaws.add(
        f"{device.path}/{name}", f"found {text[:40]!r}, expected a number such as 0x8086"
    )
    return None


def _linked_address(tree: Tree, device: FoundDevice, name: str) -> PciAddress | None:
    target = device.links.get(name)
    if target is None:
        return None
    try:
        return PciAddress.parse(target)
    except ValueFormatError:
        tree.flaws.add(f"{device.path}/{name}", f"leads to {target[:40]!r}, which is no PCI device")
        return None
