"""The choice between everything that a request leaves open: what the whole VM has in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from attrs import evolve, frozen

from kvmhooks.placement.request import Request, are_threads_told
from kvmhooks.placement.search.capacity import (
    LEAST_KEPT,
    Capacity,
    NodeCapacity,
    isolation_of,
    kind_of,
)
from kvmhooks.placement.search.node_costs import NodeCosts
from kvmhooks.placement.search.objective import WEIGHED
from kvmhooks.placement.search.packing import Packer, Rules, packer_on
from kvmhooks.placement.search.search import Assignment, Effort, NodeAffinity, Search, SearchLimit
from kvmhooks.placement.search.weights import UNIT, part
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet

FEW_CPUS: Final = 4
"""A host of so many CPUs keeps a single one, if a VM wants the rest."""

BEFORE_CORES: Final = tuple(
    name for name in WEIGHED[: WEIGHED.index("l3")] if name not in {"unevenness", "far_helpers"}
)
"""The numbers that a placement with fewer threads in a core could have less of, on more cores."""

SCORED: Final = UNIT["moved_mib"] << 40
"""A packed number divided by this is its part of the score."""


@frozen(kw_only=True)
class Terms:
    """Terms that are the same for every way to place a VM."""

    capacity: Capacity
    requests: tuple[Request, ...]
    usable: CpuSet
    """CPUs that dedicated vCPUs may have, as far as they are free."""
    affinity: NodeAffinity
    effort: Effort
    current: CpuSet = CpuSet()
    """The CPUs that its dedicated vCPUs have now."""
    homes: tuple[int | None, ...] = ()
    """The nodes of its cells now."""


@frozen(eq=False, kw_only=True)
class Choice:
    """The best placement."""

    capacity: Capacity
    """The host as it was searched: with a reserve more on it than was known, if need be."""
    request: Request
    packer: Packer
    assignment: Assignment
    crowding: int
    gap: tuple[tuple[str, int], ...]

    @property
    def kept(self) -> CpuSet:
        """All CPUs that are kept for the host, the reserves of this placement among them."""
        reserves = 0
        for node, count in self.guest_cores.items():
            if count:
                reserves |= self.packer.way(self.capacity.numa_nodes[node], count).reserve
        return self.capacity.housekeeping | CpuSet.from_mask(reserves)

    @property
    def guest_cores(self) -> Counter[int]:
        """The dedicated guest cores on each node, by index."""
        counts: Counter[int] = Counter()
        placed = zip(self.assignment.cells, self.assignment.numa_nodes, strict=True)
        for cell, node in placed:
            counts[node.index] += cell.cores
        return counts

    @property
    def key(self) -> tuple[int, ...]:
        """The order of results: the score, then the guest that sees the most threads."""
        best = self.assignment
        return (
            self.crowding,
            *best[:4],
            self.request.page_rank,
            best.packed // SCORED,
            -self.request.threads,
        )


def choose(terms: Terms) -> Choice | None:
    """Return the best placement, or None: nothing fits.

    Raises ``SearchLimit`` when not everything was looked at and nothing of what was fits.
    """
    was_cut = False
    for attempt in _passes(terms):
        try:
            found = attempt()
        except SearchLimit:
            was_cut = True
            continue
        if found is not None:
            return found if not was_cut else evolve(found, gap=(("nodes", found.key[2]),))
    if was_cut:
        raise SearchLimit
    return None


def _passes(terms: Terms) -> Iterator[Callable[[], Choice | None]]:
    """Yield the searches in the order of the score's first two numbers."""
    capacity = terms.capacity
    beside = (False, True) if terms.requests[0].dedicated else (False,)
    for is_beside in beside:
        yield partial(_wide, terms, is_beside)
    if capacity.is_open and beside[1:] and len(capacity.housekeeping) < LEAST_KEPT:
        for is_beside in beside:
            yield partial(_narrow, terms, is_beside)


def _wide(terms: Terms, may_be_beside_host: bool) -> Choice | None:  # noqa: FBT001
    """Return the best of placements that leave the host two CPUs, or those that are given."""
    capacity = terms.capacity
    found = _best(terms, may_be_beside_host)
    if found is None or not found.request.dedicated or not capacity.is_open:
        return found
    if len(found.kept) >= LEAST_KEPT:
        return found
    # It takes all of its nodes: the host's first reserve is on any node, given before the search.
    packer = found.packer
    reserves = [
        CpuSet.from_mask(reserve) for node in _unlike(terms) for reserve in packer.reserves(node)
    ]
    kept = (capacity.housekeeping | reserve for reserve in reserves)
    return _best_keeping(terms, kept, may_be_beside_host, is_open=True)


def _narrow(terms: Terms, may_be_beside_host: bool) -> Choice | None:  # noqa: FBT001
    """Return the best of placements that leave the host a single CPU."""
    capacity = terms.capacity
    kept: list[CpuSet] = [capacity.housekeeping] if capacity.housekeeping else []
    if not kept and len(capacity.online) <= FEW_CPUS:
        for node in _unlike(terms):
            seen = set()
            for domain in node.domains:
                for core in domain.cores:
                    cpus = CpuSet.from_mask(core.free & ~core.isolated)
                    alike = (domain.likeness, kind_of(core), core.free & terms.usable.mask != 0)
                    if cpus and (alike not in seen or core.mates):
                        seen.add(alike)
                        kept.append(CpuSet((cpus.first(),)))
    return _best_keeping(terms, kept, may_be_beside_host, is_open=False)


def _best_keeping(
    terms: Terms,
    kept: Iterable[CpuSet],
    may_be_beside_host: bool,  # noqa: FBT001
    *,
    is_open: bool,
) -> Choice | None:
    """Return the best where the host keeps one of some sets of CPUs."""
    best: tuple[tuple[int, ...], Choice] | None = None
    for cpus in kept:
        capacity = terms.capacity.keeping(cpus, is_open=is_open)
        found = _best(evolve(terms, capacity=capacity), may_be_beside_host)
        if found is None:
            continue
        key = (*found.key[:-2], _with_reserves(found, terms.capacity), found.key[-1])
        if best is None or key < best[0]:
            best = key, found
    return None if best is None else best[1]


def _with_reserves(found: Choice, before: Capacity) -> int:
    """Return the packed score with what was given before the search: kinds and whole cores."""
    packed = found.assignment.packed
    for old, new in zip(before.numa_nodes, found.capacity.numa_nodes, strict=True):
        for old_domain, new_domain in zip(old.domains, new.domains, strict=True):
            packed += UNIT["l3_blocks"] * (old_domain.whole**2 - new_domain.whole**2)
            for core, now in zip(old_domain.cores, new_domain.cores, strict=True):
                if old.is_hybrid:
                    taken = (core.free & ~now.free).bit_count()
                    packed += UNIT["fast_reserves"] * (2 - core.rank) * taken
        packed += UNIT["node_blocks"] * (old.whole**2 - new.whole**2)
    return packed // SCORED


def _unlike(terms: Terms) -> Iterator[NodeCapacity]:
    """Yield the nodes, of those that can be exchanged one."""
    capacity, affinity = terms.capacity, terms.affinity
    memory = terms.requests[0].spec.memory
    is_any = capacity.online <= terms.usable and not terms.current and memory.nodes is None
    is_any = is_any and all(cell.node is None for cell in memory.cell)
    seen = set()
    is_flat = capacity.is_flat and is_any
    for node in capacity.numa_nodes:
        alike = (
            node.likeness,
            node.kept,
            node.helpers,
            node.memory_kib,
            tuple(node.pages.items()),
            node.allocatable_kib,
            node.load,
            len(node.pool),
            affinity.count(node),
            node.index in affinity.required,
        )
        if not is_flat or alike not in seen:
            seen.add(alike)
            yield node


def _best(terms: Terms, may_be_beside_host: bool) -> Choice | None:  # noqa: FBT001
    """Return the best of one pass. Raises ``SearchLimit``."""
    best: Choice | None = None
    was_cut = False
    for request in terms.requests:
        try:
            found = _crowded_least(terms, request, terms.usable, may_be_beside_host)
        except SearchLimit:
            was_cut = True
            continue
        if found is not None and (best is None or found.key < best.key):
            best = found
            if _is_unbeaten_by_fewer_threads(best, terms):
                break
    if best is None and was_cut:
        raise SearchLimit
    if best is not None and was_cut:
        return evolve(best, gap=(("nodes", best.assignment.nodes),))
    return best


def _is_unbeaten_by_fewer_threads(best: Choice, terms: Terms) -> bool:
    """Return whether no request with fewer guest threads in a core can be better.

    Where each guest core has a whole core, nothing that weighs more could be less, and all cores of
    the host are alike: of any placement with fewer threads in a core in which every guest core is
    alone, too, a part of the cores is enough with more, in no more caches.
    """
    request, assignment = best.request, best.assignment
    wanted = len(request.cells) or 1
    return (
        len(request.dedicated) == request.spec.cpu.vcpus
        and request.page_rank == 0
        and terms.capacity.is_uniform
        and (assignment.cohabiting, assignment.nodes, assignment.remote_devices) == (0, wanted, 0)
        and assignment.distance == terms.capacity.least_distance(wanted)
        and not any(part(assignment.packed, name) for name in BEFORE_CORES)
    )


def _crowded_least(
    terms: Terms,
    request: Request,
    usable: CpuSet,
    may_be_beside_host: bool,  # noqa: FBT001
) -> Choice | None:
    """Return the least crowding under which a request fits, and the best placement under that."""
    cpu = request.spec.cpu
    rules = Rules(
        threads=request.threads,
        smt=cpu.smt,
        usable=usable.mask,
        may_be_beside_host=may_be_beside_host,
        is_slow_counted=cpu.kind is None,
        is_alone=is_alone(request.spec),
        isolation=isolation_of(request.spec, terms.capacity),
        is_open=terms.capacity.is_open,
        is_any_usable=not terms.current and terms.capacity.online <= usable,
        current=terms.current.mask,
    )
    packer = packer_on(terms.capacity, rules, len(request.dedicated) // request.threads)

    def under(crowding: int) -> Choice | None:
        node_costs = NodeCosts(
            capacity=terms.capacity, request=request, packer=packer, crowding=crowding
        )
        assignment = Search(node_costs, terms.affinity, terms.effort, terms.homes).best()
        if assignment is None:
            return None
        return Choice(
            capacity=terms.capacity,
            request=request,
            packer=packer,
            assignment=assignment,
            crowding=crowding,
            gap=assignment.gap,
        )

    if len(request.dedicated) == cpu.vcpus:
        return under(0)
    low, high = 0, 1
    best = under(high)
    while best is None and high < cpu.vcpus:
        low, high = high, min(high * 2, cpu.vcpus)
        best = under(high)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        found = under(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, found
    return best


def is_alone(spec: VmSpec) -> bool:
    """Return whether two guest cores may not be on one core: nobody said that threads are cores."""
    return not are_threads_told(spec)
