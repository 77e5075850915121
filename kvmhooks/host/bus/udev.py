"""The PCI devices of the live host and what belongs to them, through libudev.

This is the way to ask a running system; ``kvmhooks.host.bus.pci`` reads the same facts from files,
for captured trees. pyudev is imported here only, and this module only where it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyudev

from kvmhooks.host.bus.pci import (
    ATTRIBUTES,
    LINKS,
    MDEV,
    VIRTFN,
    FoundDevice,
    make_devices,
    shown_block_name,
)

if TYPE_CHECKING:
    from kvmhooks.host.bus.devices import PciDevice
    from kvmhooks.host.files.tree import Tree


def read_pci(tree: Tree) -> tuple[PciDevice, ...]:
    """Read all PCI devices of this machine. Raises ``OSError`` where there is no libudev."""
    context = pyudev.Context()
    net = _names_by_owner(context.list_devices(subsystem="net"))
    block = _names_by_owner(context.list_devices(subsystem="block", DEVTYPE="disk"))
    devices = context.list_devices(subsystem="pci")
    return make_devices(tree, [_found(device, net, block) for device in devices])


def _found(
    device: pyudev.Device, net: dict[str, tuple[str, ...]], block: dict[str, tuple[str, ...]]
) -> FoundDevice:
    name, path = device.sys_name, device.sys_path
    present = {entry.name for entry in Path(path).iterdir()}
    texts = {each: device.attributes.get(each) for each in ATTRIBUTES if each in present}
    links = [each for each in present if each in LINKS or VIRTFN.fullmatch(each)]
    return FoundDevice(
        name=name,
        path=path.lstrip("/"),
        attributes={
            each: text.decode("utf-8", "replace").strip("\0 \t\r\n")
            for each, text in texts.items()
            if text is not None
        },
        links={each: Path(path, each).readlink().name for each in links},
        can_reset="reset" in present,
        is_parent=MDEV in present,
        net=net.get(name, ()),
        block=tuple(map(shown_block_name, block.get(name, ()))),
    )


def _names_by_owner(devices: pyudev.Enumerator) -> dict[str, tuple[str, ...]]:
    """Return the names of devices by the PCI device nearest above each."""
    owners: dict[str, tuple[str, ...]] = {}
    for device in devices:
        owner = device.find_parent("pci")
        if owner is not None:
            owners[owner.sys_name] = (*owners.get(owner.sys_name, ()), device.sys_name)
    return owners
