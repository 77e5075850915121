"""The keys for encrypted guests: how many a host has, and how many of them are taken.

The kernel's misc controller counts those of VMs that run, whoever started them; a VM that was
planned and has not started yet was promised one. Where nobody counts, the VMs that are known are
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import KEYS, Holding
from kvmhooks.machine.confidential import KeyCount
from kvmhooks.machine.target import Target, number_told

_BY_LIBVIRT: Final = {"sev": "maxGuests", "sev_es": "maxESGuests"}
"""libvirt's elements (https://libvirt.org/formatdomaincaps.html#sev-capabilities)."""


def keys_beside(host: Host, target: Target, holdings: Iterable[Holding]) -> dict[str, KeyCount]:
    """Return the keys of each kind of which it is known how many a host has.

    ``holdings`` are those of other VMs; of ``host`` the VM's own key is not counted as used.
    """
    held = list(holdings)
    counted = (host.cgroup.misc_used if host.cgroup is not None else None) or {}
    found = {}
    for kind in KEYS:
        total, source = _total(kind, host, target)
        if total is None:
            continue
        with_key = [holding for holding in held if holding.key == kind]
        used = len(with_key)
        if kind in counted:
            used = counted[kind] + sum(not holding.has_key for holding in with_key)
        names = tuple(sorted({holding.name for holding in with_key}))
        found[kind] = KeyCount(total=total, used=used, source=source, holders=names)
    return found


def _total(kind: str, host: Host, target: Target) -> tuple[int | None, str]:
    """Return how many keys there are, and who tells it: the kernel, libvirt, or the processor.

    The kernel shows no row of a kind that has none (``misc_cg_capacity_show()``,
    kernel/cgroup/misc.c), and rows of SEV only while ``kvm_amd`` is loaded.
    """
    rows: Mapping[str, int] = (host.cgroup.misc if host.cgroup is not None else None) or {}
    kinds = {"tdx"} if kind == "tdx" else {"sev", "sev_es"}
    if kinds & rows.keys():
        return rows.get(kind, 0), f"misc.capacity: {kind}"
    name = _BY_LIBVIRT.get(kind)
    told = None if name is None else number_told(target, f"features/sev/{name}")
    if told is not None:
        return told, f"libvirt: {name}"
    sev = host.processor.sev if host.processor is not None else None
    if sev is None or kind == "tdx":
        return None, ""
    return sev.asids if kind == "sev" else sev.es_asids, "CPUID 0x8000001F"
