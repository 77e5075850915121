"""A VM that runs, on a host that has changed: what moves, if moving is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement.cells import placed_of
from kvmhooks.placement.device_nodes import affinity_of
from kvmhooks.placement.model import ORDINARY_PAGE_KIB, Plan
from kvmhooks.placement.plan import Present, plan_on, terms_of, ways_for
from kvmhooks.placement.search.capacity import Capacity, measure
from kvmhooks.placement.search.evaluate import better, score
from kvmhooks.placement.search.search import Effort
from kvmhooks.spec.model import MemoryCell, Number, VmSpec
from kvmhooks.values import ByteSize, CpuSet


def replan(
    current: Plan,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    housekeeping: CpuSet | None = None,
    effort: Effort | None = None,
    memory_moves: bool = True,
) -> Plan | None:
    """Return the best place of a VM that runs as ``current`` says, with the least movement, or
    None.

    None: it is where it is best. The guest stays as it is: its cells, its threads and its pages. Of
    the placements with the best score the one is taken that moves the least memory, then the
    fewest guest cores. A VM that may not be where it is (a CPU is gone, or another VM's) moves in
    any case. Without ``memory_moves`` each cell stays on its node. Raises ``PlanError`` when a VM
    that has to move fits nowhere.
    """
    spec = _as_it_is(current, memory_moves=memory_moves)
    inventory = inventory_on(place, claims)
    holdings = inventory.others_of(current.uuid)
    own: Counter[tuple[int | None, int]] = Counter()
    for cell in current.cells:
        if cell.is_huge:
            own[cell.node, cell.page_kib] += cell.pages
    kept = inventory.kept_beside(holdings) if housekeeping is None else housekeeping
    capacity = measure(inventory.host_beside(current.uuid), holdings, kept, own)
    now = _score_now(current, spec, capacity)
    placed = placed_of(current, capacity)
    may_stay = placed is not None and _may_stay(current, spec, capacity)
    present = Present(
        vcpus={pin.vcpu: pin.cpus for pin in current.vcpus},
        homes=tuple(cell.node for cell in current.cells),
    )
    try:
        found = plan_on(
            spec,
            capacity,
            effort=effort or Effort(),
            present=present,
            hypervisor=inventory.hypervisor_of(spec.name),
        )
    except PlanError:
        if may_stay:
            return None
        raise
    if may_stay and now is not None and not better(found.score, now):
        return None
    return evolve(
        found,
        spec=current.spec,
        administered=current.administered,
        why=(*_moves(current, found, now), *found.why),
    )


def score_of(
    plan: Plan,
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    housekeeping: CpuSet | None = None,
) -> dict[str, int]:
    """Return the score that a plan has on a host, counted from its pins and cells.

    Raises ``PlanError`` for a plan with a node that the host has not.
    """
    inventory = inventory_on(place, claims)
    others = inventory.others_of(plan.uuid)
    kept = inventory.kept_beside(others) if housekeeping is None else housekeeping
    now = _score_now(plan, plan.spec, measure(inventory.host, others, kept))
    if now is None:
        nodes = ", ".join(str(cell.node) for cell in plan.cells)
        raise PlanError("cells", f"nodes {nodes}", "nodes of the host")
    return now


def _score_now(current: Plan, spec: VmSpec, capacity: Capacity) -> dict[str, int] | None:
    """Return the score of a plan where it is; None when a node or a CPU of it is gone.

    Where the placement chose the host's CPUs, those are its choice.
    """
    known = capacity.housekeeping
    if capacity.is_open and current.dedicated:
        here = current.housekeeping & capacity.online - capacity.held
        capacity = capacity.keeping(known | here)
    placed = placed_of(current, capacity)
    if placed is None:
        return None
    reserves = capacity.housekeeping - known
    return score(spec, placed, capacity, affinity_of(spec, capacity), reserves=reserves)


def _as_it_is(current: Plan, *, memory_moves: bool) -> VmSpec:
    """Return the spec with all that a running guest cannot change said as it was decided."""
    spec, shape = current.spec, current.topology
    given = spec.memory.cell
    asked = [given[cell.id].node if given else None for cell in current.cells]
    cells = tuple(
        MemoryCell(
            vcpus=cell.vcpus,
            size=ByteSize.kib(cell.memory_kib),
            node=asked[cell.id] if memory_moves or cell.node is None else Number(cell.node),
        )
        for cell in current.cells
    )
    page_kib = current.cells[0].page_kib
    return evolve(
        spec,
        machine=evolve(spec.machine, accel=current.accel),
        cpu=evolve(
            spec.cpu,
            sockets=shape.sockets,
            dies=shape.dies,
            cores=shape.cores,
            threads=shape.threads,
            iothreads=Number(len(current.iothreads)),
        ),
        memory=evolve(
            spec.memory,
            cells=None,
            cell=cells,
            hugepages=ByteSize.kib(page_kib) if page_kib > ORDINARY_PAGE_KIB else False,
        ),
        disk=tuple(
            evolve(disk, iothread=iothread)
            for disk, iothread in zip(spec.disk, current.disk_iothreads, strict=True)
        ),
    )


def _may_stay(current: Plan, spec: VmSpec, capacity: Capacity) -> bool:
    """Return whether every vCPU may go on where it is."""
    terms = terms_of(spec, capacity, ways_for(spec, capacity), effort=Effort())
    allowed = terms.usable & capacity.free
    pool = capacity.online - capacity.isolated - capacity.held
    return all(
        pin.cpus <= (allowed if pin.vcpu in current.dedicated else pool) for pin in current.vcpus
    )


def _moves(current: Plan, found: Plan, now: dict[str, int] | None) -> list[str]:
    """Return the moves, each with its purpose."""
    before = {pin.vcpu: pin.cpus for pin in current.vcpus}
    moves = [
        f"vCPU {pin.vcpu} moves from CPU {before[pin.vcpu]} to {pin.cpus}"
        for pin in found.vcpus
        if pin.cpus != before[pin.vcpu]
    ]
    moves += [
        f"the memory of cell {new.id} moves from node {old.node} to node {new.node}"
        for old, new in zip(current.cells, found.cells, strict=True)
        if old.node != new.node
    ]
    for name, number in found.score.items():
        if now is not None and number != now[name]:
            moves.append(f"score.{name}: {now[name]} becomes {number}")
            break
    return moves
