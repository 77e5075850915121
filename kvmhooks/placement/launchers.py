"""Keys that only one of the two launchers carries out: kvm-launch, or libvirt with our hook.

Beside the other they would do nothing, so whoever starts a VM refuses them there, and whoever only
writes it down tells of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from kvmhooks.errors import Problem
from kvmhooks.spec.enabling import as_written
from kvmhooks.spec.model import VmSpec

KVM_LAUNCH: Final = "kvm-launch"
LIBVIRT: Final = "libvirt"

ALONE: Final[dict[str, tuple[str, str]]] = {
    "run.hang_timeout": (KVM_LAUNCH, "libvirt waits for a QEMU that does not answer"),
    "run.ready": (KVM_LAUNCH, "libvirt tells nobody"),
    "run.restart": (KVM_LAUNCH, "libvirt starts no VM again"),
    "run.restart_delay": (KVM_LAUNCH, "libvirt starts no VM again"),
    "run.writable": (KVM_LAUNCH, "libvirt's profile of AppArmor or SELinux says what QEMU writes"),
    "machine.sandbox": (KVM_LAUNCH, "seccomp_sandbox of qemu.conf says it"),
    "memory.path": (KVM_LAUNCH, "memory_backing_dir of qemu.conf says it"),
    "tpm.state": (KVM_LAUNCH, "libvirt keeps the TPM's state itself"),
    "helper": (KVM_LAUNCH, "libvirt starts no such program"),
    "isolation.cache_ways": (LIBVIRT, "kvm-launch makes no group of resctrl"),
    "isolation.memory_bandwidth": (LIBVIRT, "kvm-launch makes no group of resctrl"),
    "net[].vlan": (LIBVIRT, "[[pci]] with sriov = { …, vlan = … } does it"),
}
"""Key: the launcher that carries it out, and what there is of it beside the other one.

The keys of ``disk.encryption`` for each of them (``secret``, ``key``) are asked for together, and
``shared_memory.user`` is left out for libvirt by the device itself.
"""


def foreign(spec: VmSpec, launcher: str) -> Iterator[Problem]:
    """Yield each key that a VM says and only the other launcher carries out."""
    for key, (its, instead) in ALONE.items():
        if its == launcher:
            continue
        for at, value in _said(spec, key):
            yield Problem(at, value, f"nothing, or {its}: {instead}")
    if launcher == KVM_LAUNCH:
        yield from _addresses(spec)


def left_out(spec: VmSpec, launcher: str) -> Iterator[str]:
    """Yield a sentence for each such key, where the VM is only written down."""
    for problem in foreign(spec, launcher):
        yield f"{problem.at} is left out: {problem.expected.partition(': ')[2]}"


def _addresses(spec: VmSpec) -> Iterator[Problem]:
    """Yield the addresses of the card's functions, which libvirt sets and QEMU cannot."""
    for index, net in enumerate(spec.net):
        if net.type == "hostdev" and net.mac is not None:
            expected = f"nothing, or {LIBVIRT}: [[pci]] with sriov = {{ …, mac = … }} does it"
            yield Problem(f"net[{index}].mac", repr(str(net.mac)), expected)


def _said(spec: VmSpec, key: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the value of a key, where it is another than its default."""
    head, _, name = key.rpartition(".")
    if head.endswith("[]"):
        tables: list[tuple[str, Any]] = [
            (f"{head[:-2]}[{index}]", table) for index, table in enumerate(getattr(spec, head[:-2]))
        ]
    else:
        tables = [(head, getattr(spec, head) if head else spec)]
    for at, table in tables:
        if table is None:
            continue
        value = getattr(table, name)
        if value != attrs.fields_dict(type(table))[name].default:
            yield f"{at}.{name}" if at else name, as_written(value)
