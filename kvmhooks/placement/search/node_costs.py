"""The cost of a guest cell on a node, or the fact that it does not fit there."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import TYPE_CHECKING

from attrs import field, frozen

from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.search.weights import UNIT

if TYPE_CHECKING:
    from kvmhooks.placement.request import CellAsk, Request
    from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
    from kvmhooks.placement.search.packing import Packer


@frozen(eq=False, kw_only=True)
class NodeCosts:
    """The nodes of a host for one request, under one limit of crowding."""

    capacity: Capacity
    request: Request
    packer: Packer
    crowding: int
    """At most so many of the VM's own shared vCPUs on a CPU."""
    _known: dict[tuple[int, int, int, int, int | None, int], list[int | None]] = field(factory=dict)
    _nodes: list[tuple[NodeCapacity, int | None, Sequence[int]]] = field(factory=list)
    """Those that the spec allows, each with its room and what guest cores cost on it."""

    def costs(self, cell: CellAsk) -> list[int | None]:
        """Return the packed cost of a cell, alone on each node; None where it does not fit."""
        key = (cell.cores, cell.floating, cell.units, cell.room, cell.node, cell.added)
        costs = self._known.get(key)
        if costs is None:
            costs = self._known[key] = [None] * len(self.capacity.numa_nodes)
            has_more = self._is_more_than_cores(cell)
            for node, room, table in self._allowed():
                if cell.cores < len(table) and self._has_room(cell, node, room):
                    cost = table[cell.cores]
                    costs[node.index] = self._cost(cell, node, cost) if has_more else cost
        return costs

    def _has_room(self, cell: CellAsk, node: NodeCapacity, room: int | None) -> bool:
        """Return whether a node has room for a cell's memory, and for what is added to it."""
        if self.request.page_kib == ORDINARY_PAGE_KIB:
            return room is None or cell.room + cell.added <= room
        ordinary = node.ordinary_mib
        return (room is None or cell.room <= room) and (
            not cell.added or ordinary is None or cell.added <= ordinary
        )

    def can_hold(self, cells: Sequence[CellAsk]) -> bool:
        """Return whether each cell has a node, and the nodes a place for each guest core.

        Where not, cells that share nodes do not fit either.
        """
        if any(self.costs(cell).count(None) == len(self.capacity.numa_nodes) for cell in cells):
            return False
        cores = sum(cell.cores for cell in cells)
        return cores <= sum(len(table) - 1 for _, _, table in self._allowed())

    def _allowed(self) -> list[tuple[NodeCapacity, int | None, Sequence[int]]]:
        if not self._nodes:
            nodes = self.request.spec.memory.nodes
            has_cores = bool(self.request.dedicated)
            self._nodes.extend(
                (node, self.room(node), self.packer.costs(node) if has_cores else (0,))
                for node in self.capacity.numa_nodes
                if nodes is None or node.node in nodes
            )
        return self._nodes

    def _is_more_than_cores(self, cell: CellAsk) -> bool:
        """Return whether more than a cell's guest cores costs, or decides where it may be."""
        return (
            not cell.cores
            or cell.floating > 0
            or cell.node is not None
            or self.request.page_kib != ORDINARY_PAGE_KIB
            or not self.request.cells
        )

    def _cost(self, cell: CellAsk, node: NodeCapacity, cost: int) -> int | None:
        """Return the cost of a cell whose guest cores cost so much there."""
        if cell.node is not None and cell.node != node.node:
            return None
        if not node.cpus and (cell.vcpus or not self._is_named(node)):
            return None
        if self.request.page_kib != ORDINARY_PAGE_KIB:
            cost += UNIT["allocated"] * self.to_allocate(cell, node)
        if cell.floating:
            pool = self.pool(node, cell.cores)
            if not self.floats(cell.floating, node, pool):
                return None
            cost += UNIT["load"] * ceil((cell.floating + node.load) * 1000 / pool)
        if not self.request.cells:
            cost += UNIT["unevenness"] * len(cell.vcpus) ** 2
        return cost

    def _is_named(self, node: NodeCapacity) -> bool:
        """Return whether the spec names a node, by its number."""
        memory = self.request.spec.memory
        return memory.nodes is not None or any(cell.node == node.node for cell in memory.cell)

    def floats(self, floating: int, node: NodeCapacity, pool: int) -> bool:
        """Return whether so many vCPUs may float over so many CPUs."""
        ratio = self.request.spec.cpu.ratio
        return (
            pool >= 1
            and floating <= self.crowding * pool
            and (ratio is None or floating + node.load <= ratio * pool)
        )

    def pool(self, node: NodeCapacity, cores: int) -> int:
        """Return the CPUs of a node's pool that so many dedicated guest cores surely leave."""
        cpu = self.request.spec.cpu
        each = self.request.threads if cpu.smt == "share" else self.capacity.threads
        return len(node.pool) - each * cores

    def room(self, node: NodeCapacity) -> int | None:
        """Return how many units of memory a node has room for; None where that is not known."""
        request = self.request
        if request.page_kib == ORDINARY_PAGE_KIB:
            return node.ordinary_mib
        return node.room(request.page_kib, allocate=request.spec.memory.allocate)

    def to_allocate(self, cell: CellAsk, node: NodeCapacity) -> int:
        """Return how many huge pages of a cell are not there yet."""
        return max(cell.units - node.pages.get(self.request.page_kib, 0), 0)

    def most(self, node: NodeCapacity) -> int:
        """Return how many guest cores, with their share of the memory, a node takes as one cell."""
        request = self.request
        nodes = request.spec.memory.nodes
        if not node.cpus or (nodes is not None and node.node not in nodes):
            return 0
        if request.dedicated:
            most = len(self.packer.costs(node)) - 1
        else:
            most = min(len(node.pool) * self.crowding, request.spec.cpu.vcpus)
            ratio = request.spec.cpu.ratio
            if ratio is not None:
                most = min(most, floor(ratio * len(node.pool) - node.load))
            most = max(most, 0) // request.threads
        room = self.room(node)
        if room is not None:
            # The most of which the share of memory, rounded up, is no more than the room.
            most = min(most, room * request.guest_cores // request.units)
        return min(most, request.guest_cores)
