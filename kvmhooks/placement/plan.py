"""The plan of one VM on one host: pure, and the same for the same arguments."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from attrs import evolve, frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import PLANNED, Host
from kvmhooks.inventory.hypervisor import Hypervisor
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.keys import keys_beside
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.machine.confidential import security_warnings
from kvmhooks.machine.cpu_model import choose_cpu
from kvmhooks.machine.hardware import Decided, choose_hardware
from kvmhooks.machine.iothreads import serve_disks
from kvmhooks.machine.mdev import choose_parents
from kvmhooks.machine.sriov import with_coming
from kvmhooks.machine.target import Target
from kvmhooks.machine.topology import check_limits, choose_topology
from kvmhooks.placement import refusal
from kvmhooks.placement.cache_ways import (
    Ways,
    cpus_with,
    cpus_with_bandwidth,
    shares,
    ways_of,
)
from kvmhooks.placement.cells import cells_of, distances_of, placed_of
from kvmhooks.placement.defaults import administered_of, give_way, with_administered
from kvmhooks.placement.device_nodes import (
    affinity_of,
    check_devices,
    device_warnings,
    place_devices,
)
from kvmhooks.placement.emulator import emulator_cpus
from kvmhooks.placement.model import (
    ORDINARY_PAGE_KIB,
    IothreadPin,
    Plan,
    VcpuPin,
)
from kvmhooks.placement.pci_selection import choose_devices
from kvmhooks.placement.pins import Pins, pin
from kvmhooks.placement.reasons import Settled, reasons, warnings, without_effect
from kvmhooks.placement.request import dedicated_of, requests
from kvmhooks.placement.search.capacity import Capacity, measure
from kvmhooks.placement.search.choose import Choice, Terms, choose
from kvmhooks.placement.search.evaluate import Placed, score
from kvmhooks.placement.search.host_cpus import choose_housekeeping
from kvmhooks.placement.search.search import Effort, NodeAffinity, SearchLimit
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union

NAMESPACE: Final = uuid.UUID("7e0d6d9e-7f5b-5f0a-9b53-6b766d686f6f")
"""The name space of UUIDs that are derived from a VM's name (RFC 9562, version 5)."""


@frozen(kw_only=True)
class Present:
    """The present place of a VM that is planned anew."""

    vcpus: Mapping[int, CpuSet]
    homes: tuple[int | None, ...]
    """The node of each cell."""


def plan(
    spec: VmSpec,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    housekeeping: CpuSet | None = None,
    target: Target | None = None,
    effort: Effort | None = None,
) -> Plan:
    """Decide where the VM of ``spec`` lives at ``place``, beside the VMs that made ``claims`` too.

    A bare ``Host`` is one that nobody else uses, without an administrator's limits. A claim counts
    its huge pages as promised and not mapped yet. ``housekeeping`` are the CPUs that no dedicated
    vCPU is put on; without it those of the administrator, else some that are chosen. ``target``
    says which QEMU and libvirt will run it, if not those of the inventory: only what they have is
    used. It reads nothing but its arguments. Raises ``PlanError`` when the VM does not fit; the
    message names what binds.
    """
    inventory = inventory_on(place, claims)
    hypervisor = inventory.hypervisor_of(spec.name)
    if target is not None:
        hypervisor = hypervisor.on(target)
    identity = identity_of(spec)
    others = inventory.others_of(identity)
    kept = inventory.kept_beside(others) if housekeeping is None else housekeeping
    host = inventory.host_beside(identity)
    capacity = measure(host, others, kept)
    effort = effort or Effort()
    settings = administered_of(spec.name, inventory)
    spec, told = with_administered(spec, settings)
    decided = _with_defaults(spec, capacity, effort, hypervisor)
    expected = inventory.expected_beside(identity)
    if expected:
        every = [*others, *expected]
        beside = measure(host, every, capacity.housekeeping, is_open=capacity.is_open)
        names = [other.name for other in expected]
        try:
            other = plan_on(decided.spec, beside, effort=effort, hypervisor=hypervisor)
        except PlanError:
            other = None
        decided = _apart(decided, other, capacity, names)
    return evolve(decided, administered=settings, why=(*told, *decided.why))


def _with_defaults(
    spec: VmSpec, capacity: Capacity, effort: Effort, hypervisor: Hypervisor
) -> Plan:
    """Return the plan, for which defaults of the profile give way. Raises ``PlanError``."""
    given_up: list[str] = []
    while True:
        try:
            decided = plan_on(spec, capacity, effort=effort, hypervisor=hypervisor)
        except PlanError as error:
            other = give_way(spec, error)
            if other is None:
                raise
            spec, sentence = other
            given_up.append(sentence)
        else:
            return evolve(decided, warnings=(*given_up, *decided.warnings))


def _apart(decided: Plan, other: Plan | None, capacity: Capacity, names: Sequence[str]) -> Plan:
    """Return the plan that leaves their places to VMs that are yet to start, if it is as good."""
    listed = ", ".join(sorted(names))
    placed = None if other is None else placed_of(other, capacity)
    if other is not None and placed is not None:
        spec = other.spec
        kept = capacity
        if other.dedicated and capacity.is_open:
            kept = capacity.keeping(other.housekeeping)
        chosen = kept.housekeeping - capacity.housekeeping
        if score(spec, placed, kept, affinity_of(spec, kept), reserves=chosen) == decided.score:
            reason = f"of equal places one that leaves theirs to {listed}, which will start with "
            why = (f"{reason}the host", *other.why)
            return evolve(other, score=decided.score, why=why, warnings=decided.warnings)
    message = f"{listed} will start with the host, and may want what this VM has then"
    return evolve(decided, warnings=(*decided.warnings, message))


def parts_of(spec: VmSpec) -> tuple[str, ...]:
    """Return the parts of the host that a plan for ``spec`` looks at (``kvmhooks.host.read``)."""
    has_types = any(mdev.type is not None for mdev in spec.mdev)
    more = ["pci"] if spec.pci or has_types else []
    if spec.cpu.features or spec.security.type != "none":
        more.append("processor")
    if spec.security.type != "none":
        more.append("cgroup")
    if spec.isolation.cache_ways is not None or spec.isolation.memory_bandwidth is not None:
        more.append("resctrl")
    return (*PLANNED, *more)


def identity_of(spec: VmSpec) -> str:
    """Return the UUID of the VM."""
    return spec.uuid or str(uuid.uuid5(NAMESPACE, spec.name))


def plan_on(
    spec: VmSpec,
    capacity: Capacity,
    *,
    effort: Effort,
    present: Present | None = None,
    hypervisor: Hypervisor,
) -> Plan:
    """Return the plan on a host that was looked at. Raises ``PlanError``."""
    spec = choose_devices(spec, capacity.host, capacity.holdings)
    spec = choose_parents(spec, capacity.host, identity_of(spec))
    host = with_coming(capacity.host, spec)
    capacity = capacity if host is capacity.host else evolve(capacity, host=host)
    check_limits(spec)
    check_devices(spec, host, capacity.holdings)
    accel, why_accel = hypervisor.accelerator(spec.machine.accel, host)
    found = place(spec, capacity, effort=effort, present=present)
    settled = _settle(spec, capacity, found)
    kept, is_open = settled.capacity.housekeeping, capacity.is_open
    if is_open and not kept:  # a shared VM leaves it to others
        kept = choose_housekeeping(host, capacity.held)
    capacity = settled.capacity
    choice, pins, cells, others = settled.choice, settled.pins, settled.cells, settled.others
    request = choice.request
    topology = choose_topology(
        spec.cpu,
        threads=request.threads,
        cells=[cell.vcpus for cell in cells],
        l3_cores=[taken for _, _, taken in pins.caches] if len(request.dedicated) else (),
    )
    cpu, why_cpu = choose_cpu(spec.cpu, host, accel=accel, threads=topology.threads)
    served = serve_disks(spec)
    identity = identity_of(spec)
    near_cells = tuple(device.cell for device in settled.devices) if len(cells) > 1 else ()
    hardware, why_hardware = choose_hardware(
        spec,
        host,
        hypervisor.target,
        Decided(
            accel=accel,
            model=cpu.model,
            identity=identity,
            iothreads=served.disks,
            cells=near_cells,
            cell_count=len(cells),
            keys=keys_beside(host, hypervisor.target, capacity.holdings),
        ),
    )
    caches = sorted({cache for cache, _, _ in pins.caches if cache is not None})
    limit, asked_ways = spec.isolation.memory_bandwidth, spec.isolation.cache_ways
    own = union(pins.vcpus[vcpu] for vcpu in request.dedicated)
    return Plan(
        spec=spec,
        uuid=identity,
        accel=accel,
        cpu=cpu,
        topology=topology,
        dedicated=request.dedicated,
        vcpus=tuple(VcpuPin(vcpu, pins.vcpus[vcpu]) for vcpu in range(spec.cpu.vcpus)),
        emulator=others,
        vhost=others,
        iothreads=tuple(IothreadPin(number, others) for number in served.iothreads),
        disk_iothreads=served.disks,
        cells=cells,
        distances=distances_of(choice.assignment.numa_nodes),
        memory_mode=_memory_mode(spec, choice),
        hardware=hardware,
        macs=tuple(net.mac or derived_mac(identity, index) for index, net in enumerate(spec.net)),
        pci=settled.devices,
        caches=(
            shares(found.ways, asked_ways, caches, host)
            if found.ways is not None and asked_ways is not None
            else ()
        ),
        bandwidth=tuple((cache, limit) for cache in caches) if limit is not None else (),
        exclusive=own if spec.isolation.exclusive else CpuSet(),
        idle=pins.idle,
        housekeeping=kept,
        score=settled.score,
        optimal=not choice.gap,
        gap=dict(choice.gap),
        why=(*reasons(settled), *served.why, *filter(None, [why_accel]), *why_cpu, *why_hardware),
        warnings=(
            *warnings(settled),
            *_nodes_for_the_host(settled, was_open=is_open),
            *device_warnings(spec, host),
            *_address_warnings(spec),
            *security_warnings(spec),
            *without_effect(spec, iothreads=bool(served.iothreads), caches=bool(caches)),
            *spec.left_out,
            *hardware.left_out,
        ),
    )


@frozen(kw_only=True)
class FoundPlace:
    """The place that was found for a VM's vCPUs and cells."""

    choice: Choice
    pins: Pins
    affinity: NodeAffinity
    ways: Ways | None


def place(
    spec: VmSpec, capacity: Capacity, *, effort: Effort, present: Present | None = None
) -> FoundPlace:
    """Find the best nodes for the cells and the best CPUs for the vCPUs. Raises ``PlanError``."""
    ways = ways_for(spec, capacity)
    terms = terms_of(spec, capacity, ways, effort=effort, present=present)
    try:
        choice = choose(terms) if refusal.has_helpers(spec, capacity) else None
    except SearchLimit as error:
        raise refusal.undecided(spec) from error
    if choice is None:
        raise refusal.explain(spec, capacity, terms, relaxed=lambda other: _fits(other, capacity))
    pins = pin(choice, present.vcpus if present else None)
    return FoundPlace(choice=choice, pins=pins, affinity=terms.affinity, ways=ways)


def _settle(spec: VmSpec, capacity: Capacity, found: FoundPlace) -> Settled:
    """Return what the place decides: cells, QEMU's other threads, the score, the devices' nodes."""
    choice, pins = found.choice, found.pins
    cells = cells_of(choice)
    reserves = choice.kept - capacity.housekeeping
    capacity = capacity.keeping(choice.kept)
    placed = Placed(
        vcpus=pins.vcpus,
        threads=choice.request.threads,
        page_kib=choice.request.page_kib,
        cells=tuple(
            (cell.vcpus, cell.units, capacity.numa_nodes[node.index])
            for cell, node in zip(
                choice.assignment.cells, choice.assignment.numa_nodes, strict=True
            )
        ),
    )
    used = {node.index for node in choice.assignment.numa_nodes}
    numa_nodes = tuple(node for node in capacity.numa_nodes if node.index in used)
    return Settled(
        spec=spec,
        capacity=capacity,
        choice=choice,
        pins=pins,
        cells=cells,
        others=emulator_cpus(spec, capacity, pins.vcpus, numa_nodes, reserves),
        score=score(spec, placed, capacity, found.affinity, reserves=reserves),
        devices=place_devices(spec, capacity.host, cells),
    )


def terms_of(
    spec: VmSpec,
    capacity: Capacity,
    ways: Ways | None,
    *,
    effort: Effort,
    present: Present | None = None,
) -> Terms:
    """Return the terms of the search. Raises ``PlanError`` when the spec's numbers are uneven."""
    host = capacity.host
    usable = capacity.online
    if spec.cpu.kind is not None:
        usable = CpuSet(
            cpu.id for cpu in host.cpus or () if cpu.online and cpu.kind in {None, spec.cpu.kind}
        )
    if ways is not None and spec.isolation.cache_ways is not None:
        usable &= cpus_with(ways, spec.isolation.cache_ways, host)
    if spec.isolation.memory_bandwidth is not None:
        usable &= cpus_with_bandwidth(host, capacity.holdings, spec.isolation.memory_bandwidth)
    made = tuple(requests(spec, capacity.threads, len(capacity.numa_nodes)))
    now = CpuSet()
    if present is not None:
        now = union(present.vcpus.get(vcpu, CpuSet()) for vcpu in made[0].dedicated)
    return Terms(
        capacity=capacity,
        requests=made,
        usable=usable,
        affinity=affinity_of(spec, capacity),
        effort=effort,
        current=now,
        homes=present.homes if present is not None else (),
    )


def derived_mac(identity: str, index: int) -> str:
    """Return a MAC address for interface ``index`` of the VM with this UUID, the same every time.

    52:54:00 is the prefix that QEMU and libvirt give to guests.
    """
    digest = hashlib.sha256(f"{identity}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def _fits(spec: VmSpec, capacity: Capacity) -> Choice | None:
    """Return the choice for another spec, if it fits without more ado."""
    try:
        return choose(terms_of(spec, capacity, ways_for(spec, capacity), effort=Effort()))
    except (PlanError, SearchLimit):
        return None


def _nodes_for_the_host(settled: Settled, *, was_open: bool) -> Iterator[str]:
    """Tell of nodes that a VM is spread over for nothing but CPUs that were kept for the host."""
    spec, kept, nodes = settled.spec, settled.capacity.housekeeping, settled.score["nodes"]
    if was_open or nodes < 2 or spec.memory.cell or spec.memory.cells or not dedicated_of(spec):
        return
    without = _fits(spec, settled.capacity.keeping(CpuSet()))
    if without is not None and without.assignment.nodes < nodes:
        yield (
            f"{nodes} nodes instead of {without.assignment.nodes}, since CPUs {kept} are reserved "
            "for the host (host.housekeeping, or what systemd keeps its services on)"
        )


def ways_for(spec: VmSpec, capacity: Capacity) -> Ways | None:
    """Return the cache ways there are, if the VM wants some. Raises ``PlanError``."""
    asks = spec.isolation.cache_ways is not None
    return ways_of(capacity.host, capacity.holdings) if asks else None


def _memory_mode(spec: VmSpec, choice: Choice) -> Literal["strict", "preferred"]:
    if spec.memory.mode is not None:
        return spec.memory.mode
    is_huge = choice.request.page_kib > ORDINARY_PAGE_KIB
    return "strict" if is_huge or spec.cpu.placement != "shared" else "preferred"


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
