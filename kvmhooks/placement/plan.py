"""The plan of one VM on one host: pure, and the same for the same arguments."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.placement.cpu_model import choose_cpu
from kvmhooks.placement.ground import survey
from kvmhooks.placement.model import ORDINARY_PAGE_KIB, Cell, IothreadPin, Plan, VcpuPin
from kvmhooks.placement.place import Placed, pages_of, place_dedicated, place_shared
from kvmhooks.placement.topology import choose_threads, choose_topology
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union

NAMESPACE: Final = uuid.UUID("7e0d6d9e-7f5b-5f0a-9b53-6b766d686f6f")
"""The name space of UUIDs that are derived from a VM's name (RFC 9562, version 5)."""


def plan(spec: VmSpec, host: Host, claims: Sequence[Claim] = ()) -> Plan:
    """Decide where the VM of ``spec`` lives on ``host`` beside the VMs that made ``claims``.

    It reads nothing but its arguments. Raises ``PlanError`` when the VM does not fit; the message
    names what binds.
    """
    _refuse_what_is_to_come(spec)
    identity = spec.uuid or str(uuid.uuid5(NAMESPACE, spec.name))
    claims = [claim for claim in claims if claim.uuid != identity]
    ground = survey(host, claims)
    threads = choose_threads(spec.cpu, ground.threads)
    place = place_dedicated if spec.cpu.placement == "dedicated" else place_shared
    placed = place(spec, ground, threads)
    topology = choose_topology(spec.cpu, threads=threads, cells=len(placed.cells))
    accel, why_accel = _accelerator(spec, host)
    cpu, why_cpu = choose_cpu(spec.cpu, host, accel=accel, threads=topology.threads)
    is_bound = spec.cpu.placement == "dedicated" or bool(spec.memory.hugepages)
    return Plan(
        spec=spec,
        uuid=identity,
        accel=accel,
        cpu=cpu,
        topology=topology,
        vcpus=tuple(VcpuPin(vcpu, cpus) for vcpu, cpus in enumerate(placed.vcpus)),
        emulator=placed.emulator,
        iothreads=tuple(IothreadPin(number, placed.emulator) for number in _iothreads(spec)),
        cells=tuple(_cells(spec, placed)),
        memory_mode="strict" if is_bound else "preferred",
        disk_iothreads=tuple(disk.iothread for disk in spec.disk),
        dedicated=CpuSet(range(spec.cpu.vcpus) if spec.cpu.placement == "dedicated" else ()),
        vhost=placed.emulator,
        macs=tuple(net.mac or derived_mac(identity, index) for index, net in enumerate(spec.net)),
        exclusive=union(placed.vcpus) if spec.isolation.exclusive else CpuSet(),
        housekeeping=ground.housekeeping,
        score=_score(host, placed),
        why=(*placed.why, *_why_memory(spec, placed), *why_accel, *why_cpu),
        warnings=(*placed.warnings, *_address_warnings(spec)),
    )


def derived_mac(identity: str, index: int) -> str:
    """A MAC address for interface ``index`` of the VM with this UUID, the same every time.

    52:54:00 is the prefix that QEMU and libvirt give to guests.
    """
    digest = hashlib.sha256(f"{identity}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


TO_COME: Final = {
    "cpu": ("dedicated", "smt", "kind", "realtime", "ratio", "iothreads"),
    "memory": ("cell", "allocate", "mode", "nodes"),
    "isolation": ("cache_ways", "memory_bandwidth"),
}


def _refuse_what_is_to_come(spec: VmSpec) -> None:
    for table, keys in TO_COME.items():
        for key in keys:
            made = getattr(spec, table)
            if getattr(made, key) != getattr(attrs.fields(type(made)), key).default:
                raise PlanError(f"{table}.{key}", str(getattr(made, key)), "nothing: not built yet")
    if spec.cpu.placement == "mixed":
        raise PlanError("cpu.placement", '"mixed"', "dedicated or shared: not built yet")
    if spec.pci:
        raise PlanError("pci", "devices", "none: not built yet")
    if spec.memory.hugepages == "auto":
        raise PlanError("memory.hugepages", '"auto"', "a size: not built yet")


def _accelerator(spec: VmSpec, host: Host) -> tuple[Literal["kvm", "tcg"], tuple[str, ...]]:
    asked = spec.machine.accel
    is_there = host.kvm is not None and host.kvm.available is True
    if asked == "kvm" and not is_there:
        raise PlanError("machine.accel", '"kvm"', 'a host whose /dev/kvm works, or "tcg"')
    if asked != "auto":
        return asked, ()
    if is_there:
        return "kvm", ("KVM: /dev/kvm works on this host",)
    return "tcg", ("TCG, QEMU's own emulation: this host has no working /dev/kvm",)


def _iothreads(spec: VmSpec) -> list[int]:
    return sorted({disk.iothread for disk in spec.disk if disk.iothread is not None})


def _cells(spec: VmSpec, placed: Placed) -> list[Cell]:
    count = len(placed.cells)
    share = spec.cpu.vcpus // count
    pages = pages_of(spec)
    return [
        Cell(
            id=index,
            node=field.node,
            vcpus=CpuSet(range(index * share, (index + 1) * share)),
            memory_kib=spec.memory.size // 1024 // count,
            page_kib=pages.in_kib if pages else ORDINARY_PAGE_KIB,
        )
        for index, field in enumerate(placed.cells)
    ]


def _score(host: Host, placed: Placed) -> dict[str, int]:
    used = union(placed.vcpus)
    return {
        "nodes": len({host.cpu(cpu).node for cpu in used}),
        "l3": len({host.cpu(cpu).l3 for cpu in used}),
        "cores": len({host.core_of(cpu) for cpu in used}),
    }


def _why_memory(spec: VmSpec, placed: Placed) -> tuple[str, ...]:
    nodes = {field.node for field in placed.cells}
    if nodes == {None}:
        return ()
    kind = f"{spec.memory.hugepages} pages" if spec.memory.hugepages else "ordinary pages"
    places = ", ".join(f"cell {at} from node {f.node}" for at, f in enumerate(placed.cells))
    return (f"memory in {kind}, {places}",)


def _address_warnings(spec: VmSpec) -> tuple[str, ...]:
    """Tell of addresses that another host would derive as well."""
    if spec.uuid is not None:
        return ()
    return tuple(
        f"net[{index}].mac: derived from the VM's name: on another host a VM of the same name has "
        "the same; give mac, or uuid"
        for index, net in enumerate(spec.net)
        if net.mac is None and net.type != "user"
    )
