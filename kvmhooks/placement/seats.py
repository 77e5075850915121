"""What a guest cell costs on a node, or that it does not fit there."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from attrs import field, frozen

from kvmhooks.placement.ground import Ground, Site
from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.packing import Packer
from kvmhooks.placement.request import CellAsk, Request
from kvmhooks.placement.weights import UNIT


@frozen(eq=False, kw_only=True)
class Seats:
    """The nodes of a host for one request, under one limit of crowding."""

    ground: Ground
    request: Request
    packer: Packer
    crowding: int
    """At most so many of the VM's own shared vCPUs on a CPU."""
    _known: dict[tuple[int, int, int, int, int | None], list[int | None]] = field(factory=dict)
    _nodes: list[tuple[Site, int | None, Sequence[int]]] = field(factory=list)
    """Those that the spec allows, each with its room and what guest cores cost on it."""

    def costs(self, cell: CellAsk) -> list[int | None]:
        """The packed cost of a cell, alone on each node; None where it does not fit."""
        key = (cell.cores, cell.floating, cell.units, cell.room, cell.node)
        costs = self._known.get(key)
        if costs is None:
            costs = self._known[key] = [None] * len(self.ground.sites)
            has_more = self._is_more_than_cores(cell)
            for site, room, table in self._allowed():
                if cell.cores < len(table) and (room is None or cell.room <= room):
                    cost = table[cell.cores]
                    costs[site.index] = self._cost(cell, site, cost) if has_more else cost
        return costs

    def can_hold(self, cells: Sequence[CellAsk]) -> bool:
        """Whether each cell has a node, and the nodes as many places as there are guest cores.

        Where not, cells that share nodes do not fit either.
        """
        if any(self.costs(cell).count(None) == len(self.ground.sites) for cell in cells):
            return False
        cores = sum(cell.cores for cell in cells)
        return cores <= sum(len(table) - 1 for _, _, table in self._allowed())

    def _allowed(self) -> list[tuple[Site, int | None, Sequence[int]]]:
        if not self._nodes:
            nodes = self.request.spec.memory.nodes
            has_cores = bool(self.request.dedicated)
            self._nodes.extend(
                (site, self.room(site), self.packer.costs(site) if has_cores else (0,))
                for site in self.ground.sites
                if nodes is None or site.node in nodes
            )
        return self._nodes

    def _is_more_than_cores(self, cell: CellAsk) -> bool:
        """Whether anything but the guest cores of a cell costs, or decides where it may be."""
        return (
            not cell.cores
            or cell.floating > 0
            or cell.node is not None
            or self.request.page_kib != ORDINARY_PAGE_KIB
            or not self.request.cells
        )

    def _cost(self, cell: CellAsk, site: Site, cost: int) -> int | None:
        """What a cell costs whose guest cores cost so much there."""
        if cell.node is not None and cell.node != site.node:
            return None
        if not site.cpus and cell.vcpus:
            return None
        if self.request.page_kib != ORDINARY_PAGE_KIB:
            cost += UNIT["allocated"] * self.to_allocate(cell, site)
        if cell.floating:
            pool = self.pool(site, cell.cores)
            if not self.floats(cell.floating, site, pool):
                return None
            cost += UNIT["load"] * ceil((cell.floating + site.load) * 1000 / pool)
        if not self.request.cells:
            cost += UNIT["unevenness"] * len(cell.vcpus) ** 2
        return cost

    def floats(self, floating: int, site: Site, pool: int) -> bool:
        """Whether so many vCPUs may float over so many CPUs."""
        ratio = self.request.spec.cpu.ratio
        return (
            pool >= 1
            and floating <= self.crowding * pool
            and (ratio is None or floating + site.load <= ratio * pool)
        )

    def pool(self, site: Site, cores: int) -> int:
        """The CPUs of a node's pool that so many dedicated guest cores surely leave."""
        cpu = self.request.spec.cpu
        each = self.request.threads if cpu.smt == "share" else self.ground.threads
        return len(site.pool) - each * cores

    def room(self, site: Site) -> int | None:
        """How many units of memory a node has room for; None where that is not known."""
        request = self.request
        if request.page_kib == ORDINARY_PAGE_KIB:
            return None if site.memory_kib is None else site.memory_kib // request.unit_kib
        return site.room(request.page_kib, allocate=request.spec.memory.allocate)

    def to_allocate(self, cell: CellAsk, site: Site) -> int:
        """How many huge pages of a cell are not there yet."""
        return max(cell.units - site.pages.get(self.request.page_kib, 0), 0)

    def most(self, site: Site) -> int:
        """How many guest cores, with their share of the memory, a node takes as one cell."""
        request = self.request
        nodes = request.spec.memory.nodes
        if not site.cpus or (nodes is not None and site.node not in nodes):
            return 0
        if request.dedicated:
            most = len(self.packer.costs(site)) - 1
        else:
            most = min(len(site.pool) * self.crowding, request.spec.cpu.vcpus)
            ratio = request.spec.cpu.ratio
            if ratio is not None:
                most = min(most, floor(ratio * len(site.pool) - site.load))
            most = max(most, 0) // request.threads
        room = self.room(site)
        if room is not None:
            # The most of which the share of memory, rounded up, is no more than the room.
            most = min(most, room * request.guest_cores // request.units)
        return min(most, request.guest_cores)
