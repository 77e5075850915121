"""The choice between everything that a request leaves open: what the whole VM has in common."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from kvmhooks.placement.request import Request
from kvmhooks.placement.search.capacity import Capacity
from kvmhooks.placement.search.node_costs import NodeCosts
from kvmhooks.placement.search.packing import Packer, Rules, packer_on
from kvmhooks.placement.search.search import Assignment, Effort, NodeAffinity, Search, SearchLimit
from kvmhooks.placement.search.weights import UNIT, part
from kvmhooks.values import CpuSet

SCORED = UNIT["moved_mib"] << 40
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

    request: Request
    packer: Packer
    assignment: Assignment
    crowding: int
    gap: tuple[tuple[str, int], ...]

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
    for usable, may_be_beside_host in _passes(terms):
        best: Choice | None = None
        for request in terms.requests:
            try:
                found = _crowded_least(terms, request, usable, may_be_beside_host)
            except SearchLimit:
                was_cut = True
                continue
            if found is not None and (best is None or found.key < best.key):
                best = found
                if _is_unbeaten_by_fewer_threads(best, terms):
                    break
        if best is not None and not was_cut:
            return best
        if best is not None:
            return Choice(
                request=best.request,
                packer=best.packer,
                assignment=best.assignment,
                crowding=best.crowding,
                gap=(("nodes", best.assignment.nodes),),
            )
    if was_cut:
        raise SearchLimit
    return None


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
        and not any(part(assignment.packed, name) for name in ("allocated", "slow", "company"))
    )


def _passes(terms: Terms) -> Sequence[tuple[CpuSet, bool]]:
    """Return the CPUs of the score's first two numbers: (usable CPUs, also beside the host's)."""
    request = terms.requests[0]
    isolated = terms.capacity.isolated
    usables = [terms.usable]
    if request.spec.cpu.realtime and isolated:
        usables.insert(0, terms.usable & isolated)
    beside = (False, True) if request.dedicated else (False,)
    return [(usable, is_beside) for usable in usables for is_beside in beside]


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
