"""The programs that choose the places of their VMs themselves, by what they write into a domain.

Moving such a VM is at odds with its program, which has an account of its own of every CPU.

- OpenStack Nova: ``NOVA_NS`` of nova/virt/libvirt/config.py, in versions 1.0 and 1.1.
- oVirt: ``OVIRT_VM_URI`` and ``OVIRT_TUNE_URI`` of its LibvirtVmXmlBuilder.java.
- KubeVirt: ``Metadata`` of pkg/virt-launcher/virtwrap/api/schema.go. Harvester runs its VMs by it.
- Proxmox VE has no libvirt; a domain made of one of its command lines has a machine type of its own
  (``pc-q35-9.2+pve0``).
"""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.edit.text import Element

_SPACES: Final = {
    "http://openstack.org/xmlns/libvirt/nova/": "OpenStack Nova",
    "http://ovirt.org/vm/": "oVirt",
    "http://kubevirt.io": "KubeVirt or Harvester",
}
"""The beginning of a name space: the program that writes elements of it into ``<metadata>``."""

_PVE: Final = "+pve"


def manager_of(root: Element) -> str:
    """Return the name of the program that places a domain's VM; empty for none that is known."""
    metadata = root.find("metadata")
    for child in () if metadata is None else metadata.children:
        space = child.tag.rpartition("}")[0].removeprefix("{")
        for beginning, name in _SPACES.items():
            if space.startswith(beginning):
                return name
    kind = root.find("os/type")
    return "Proxmox VE" if kind is not None and _PVE in (kind.get("machine") or "") else ""
