"""The least score of a dedicated VM on hosts that are too large to try everything: OR-Tools CP-SAT.

The model is written from the words of ``kvmhooks.placement.search.objective``: how many guest cores
each core takes, which node each cell is on, or how many guest cores each node takes where the
planner makes the cells. The numbers of the score are minimised one after the other, each kept for
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from ortools.sat.python import cp_model

from kvmhooks.placement.search.objective import ORDER
from tests.placement_proof.brute import (
    ORDINARY,
    SMALL,
    Layout,
    Score,
    are_threads_told,
    can_run,
    layouts,
    may_hold,
)
from tests.placement_proof.capacity import Capacity, Cpus, Place

SECONDS = 60.0
"""For one number of the score; it is an error when that does not do."""


class NotProven(Exception):
    """CP-SAT did not finish in the time."""


def best(capacity: Capacity) -> Score | None:
    """The least score of all placements that are allowed; None where there is none."""
    assert capacity.spec.cpu.placement == "dedicated"
    assert capacity.given is not None  # reserves are what trying everything proves
    if not can_run(capacity):
        return None
    found: Score | None = None
    for layout in _distinct(capacity):
        score = Model(capacity, layout).least(found)
        if score is not None and (found is None or score < found):
            found = score
    return found


def _distinct(capacity: Capacity) -> Iterator[Layout]:
    """The ways to cut the VM; of those where the planner makes the cells one for all of them."""
    seen = set()
    for layout in layouts(capacity):
        key = (layout.threads, layout.page_kib)
        if layout.sizes is None or key not in seen:
            seen.add(key)
            yield layout


class Model:
    """One number of guest threads, one page size, one way to cut the VM."""

    def __init__(self, capacity: Capacity, layout: Layout) -> None:
        self.capacity, self.layout = capacity, layout
        self.model = cp_model.CpModel()
        self.places: list[Place] = list(capacity.cpus)
        allowed = capacity.spec.memory.nodes
        self.may_use = {
            place: allowed is None or place is None or place in allowed for place in self.places
        }
        self.cores = {
            place: sorted({capacity.core[cpu] for cpu in capacity.cpus[place]}, key=min)
            for place in self.places
        }
        self.on_core = {
            core: self.model.new_int_var(0, self._most(core), f"core{min(core)}")
            for cores in self.cores.values()
            for core in cores
        }
        self.takes = {core: self._is(count, 1) for core, count in self.on_core.items()}
        self.guest_cores = {
            place: sum(self.on_core[core] for core in self.cores[place]) for place in self.places
        }
        self.needs: dict[Place, Any] = {}
        self.units: dict[Place, Any] = {}
        self.used: dict[Place, Any] = {}
        if layout.sizes is None:
            self._given_cells()
        else:
            self._made_cells()
        self._memory()
        for node in capacity.device_nodes("required"):
            self.model.add(self.used[node] == 1)
        self.numbers = self._numbers()

    def least(self, bound: Score | None) -> Score | None:
        """The least tuple; None where nothing is allowed, or nothing as good as ``bound``."""
        known: list[int] = []
        for at, name in enumerate(ORDER):
            number = self.numbers[name]
            if isinstance(number, int):
                known.append(number)
                continue
            if bound is not None and tuple(known) == bound[:at]:
                self.model.add(number <= bound[at])
            self.model.minimize(number)
            solver = cp_model.CpSolver()
            solver.parameters.max_time_in_seconds = SECONDS
            solver.parameters.num_workers = 1
            status = solver.solve(self.model)
            if status == cp_model.INFEASIBLE:
                return None
            if status != cp_model.OPTIMAL:
                raise NotProven(f"{name}: {solver.status_name(status)}")
            value = round(solver.objective_value)
            known.append(value)
            self.model.add(number == value)
        return tuple(known)

    def _most(self, core: Cpus) -> int:
        """Return how many guest cores a core can take."""
        capacity, threads = self.capacity, self.layout.threads
        smt = capacity.spec.cpu.smt
        if smt != "share" and (
            core not in capacity.whole or (smt == "require" and len(core) != threads)
        ):
            return 0
        room = len(core & capacity.eligible) // threads
        return room if smt == "share" and are_threads_told(capacity) else min(1, room)

    def _is(self, number: Any, least: int) -> Any:
        """A Boolean that is 1 just when a number is ``least`` or more."""
        flag = self.model.new_bool_var("")
        self.model.add(number >= least).only_enforce_if(flag)
        self.model.add(number <= least - 1).only_enforce_if(~flag)
        return flag

    def _both(self, first: Any, other: Any) -> Any:
        flag = self.model.new_bool_var("")
        self.model.add_bool_and([first, other]).only_enforce_if(flag)
        self.model.add_bool_or([~first, ~other]).only_enforce_if(~flag)
        return flag

    def _square(self, number: Any, most: int) -> Any:
        plain = self.model.new_int_var(0, most, "")
        squared = self.model.new_int_var(0, most * most, "")
        self.model.add(plain == number)
        self.model.add_multiplication_equality(squared, [plain, plain])
        return squared

    def _given_cells(self) -> None:
        """Each cell is on one node that it may be on."""
        on: dict[tuple[int, Place], Any] = {}
        cells = self.layout.cells
        for at, cell in enumerate(cells):
            for place in self.places:
                on[at, place] = self.model.new_bool_var(f"cell{at}on{place}")
                fits = self.may_use[place] and cell.node in {None, place}
                if not fits or not may_hold(self.capacity, place, has_vcpus=cell.has_vcpus):
                    self.model.add(on[at, place] == 0)
            self.model.add_exactly_one(on[at, place] for place in self.places)
        for place in self.places:
            here = [(cell, on[at, place]) for at, cell in enumerate(cells)]
            self.model.add(
                self.guest_cores[place] == sum(cell.guest_cores * flag for cell, flag in here)
            )
            self.needs[place] = self.units[place] = sum(cell.units * flag for cell, flag in here)
            self.used[place] = self.model.new_bool_var(f"used{place}")
            self.model.add_max_equality(self.used[place], [flag for _, flag in here])

    def _made_cells(self) -> None:
        """A cell for each node that takes a guest core; it needs room for its share, rounded up.

        What it has is its share rounded down, and one unit more in the first cells, the largest
        first, until none is left.
        """
        spec = self.capacity.spec
        unit = 1024 if self.layout.page_kib == ORDINARY else self.layout.page_kib
        units = spec.memory.size // 1024 // unit
        total = spec.cpu.vcpus // self.layout.threads
        self.model.add(sum(self.guest_cores.values()) == total)
        counts: dict[Place, Any] = {}
        more: dict[Place, Any] = {}
        for place in self.places:
            count = self.model.new_int_var(0, total, "")
            self.model.add(count == self.guest_cores[place])
            if not self.may_use[place]:
                self.model.add(count == 0)
            self.needs[place] = self.model.new_int_var(0, units, "")
            self.model.add_division_equality(self.needs[place], units * count + total - 1, total)
            self.used[place] = self._is(count, 1)
            counts[place] = count
            floor = self.model.new_int_var(0, units, "")
            self.model.add_division_equality(floor, units * count, total)
            more[place] = self.model.new_bool_var("")
            self.model.add_implication(more[place], self.used[place])
            self.units[place] = floor + more[place]
            self.model.add(self.units[place] >= 1).only_enforce_if(self.used[place])
        self.model.add(sum(self.units.values()) == units)
        for node, other in permutations(self.places, 2):
            is_larger = self._is(counts[node] - counts[other], 1)
            self.model.add(more[node] >= more[other]).only_enforce_if(is_larger)

    def _memory(self) -> None:
        capacity, page = self.capacity, self.layout.page_kib
        for place in self.places:
            if page == ORDINARY:
                room = capacity.ordinary_mib(place)
                if room is not None:
                    self.model.add(self.needs[place] <= room)
                continue
            have = capacity.free_pages.get((place, page), 0)
            if capacity.spec.memory.allocate:
                have += capacity.allocatable(place, page)
            self.model.add(self.needs[place] <= have)

    def _allocated(self) -> Any:
        page = self.layout.page_kib
        total: Any = 0
        if page == ORDINARY:
            return 0
        most = self.capacity.spec.memory.size // 1024 // page
        for place in self.places:
            short = self.model.new_int_var(0, most, "")
            free = self.capacity.free_pages.get((place, page), 0)
            self.model.add_max_equality(short, [self.units[place] - free, 0])
            total += short
        return total

    def _numbers(self) -> dict[str, Any]:
        capacity, spec, threads = self.capacity, self.capacity.spec, self.layout.threads
        used, takes = self.used, self.takes
        beside: list[Any] = []
        unisolated: Any = 0
        company: Any = 0
        shared_l2: Any = 0
        of_rank: list[Any] = [0, 0, 0]
        for core, count in self.on_core.items():
            if not core <= capacity.isolated:
                # Isolated CPUs of a core are taken first: it costs less.
                quiet = self.model.new_int_var(0, len(core), "")
                some = len(core & capacity.eligible & capacity.isolated)
                self.model.add_min_equality(quiet, [count * threads, some])
                unisolated += 2 * count * threads - quiet
            if core & capacity.housekeeping:
                beside.append(takes[core])
            alone = self.model.new_bool_var("")
            if core <= capacity.free and self._most(core) > 1:
                many = self._is(count, 2)
                self.model.add(takes[core] == alone + many)
            else:
                self.model.add(alone == (takes[core] if core <= capacity.free else 0))
            company += count - alone
            taken = capacity.housekeeping | capacity.held
            if any(mate & taken for mate in capacity.mates(core)):
                shared_l2 += count
            of_rank[capacity.rank(core)] += count * threads
        is_sought = spec.cpu.realtime and bool(capacity.isolated)
        return {
            "narrow": int(len(capacity.housekeeping) < 2),
            "beside_host": self._any(beside),
            "crowding": 0,
            "cohabiting": 0
            if self.layout.sizes is not None
            else len(self.layout.cells) - sum(used.values()),
            "nodes": sum(used.values()),
            "distance": sum(
                (capacity.distance(place, other) + capacity.distance(other, place))
                * self._both(used[place], used[other])
                for at, place in enumerate(self.places)
                for other in self.places[at + 1 :]
            ),
            "remote_devices": sum(1 - used[node] for node in capacity.device_nodes("preferred")),
            "small_pages": SMALL[self.layout.page_kib] if spec.memory.hugepages == "auto" else 0,
            "allocated": self._allocated(),
            "unevenness": 0
            if self.layout.sizes is None
            else sum(
                self._square(threads * count, spec.cpu.vcpus) for count in self.guest_cores.values()
            ),
            "unisolated": unisolated if is_sought else 0,
            "on_isolated": 0 if spec.cpu.realtime else sum(map(self._on_isolated, self.places)),
            "low_power": of_rank[2],
            "kinds": sum(map(self._kinds, self.places)),
            "slow": of_rank[1] if spec.cpu.kind is None else 0,
            "company": company,
            "shared_l2": shared_l2,
            "far_helpers": sum(
                self._is(self.guest_cores[place], 1)
                for place in self.places
                if not capacity.housekeeping & capacity.cpus[place]
            ),
            "l3": sum(self._any([takes[core] for core in cores]) for cores in self._by_l3()),
            "shared_l3": sum(
                self._any([takes[core] for core in cores])
                for cores in self._by_l3()
                if any(core & capacity.housekeeping for core in cores)
            ),
            "cores": sum(takes.values()),
            "helpers": sum(map(self._helpers, self.places)),
            "fast_reserves": 0,
            "load": 0,
            "node_blocks": -sum(
                self._square(sum(self._left(cores)), len(cores)) for cores in self.cores.values()
            ),
            "l3_blocks": -sum(
                self._square(sum(self._left(cores)), len(cores)) for cores in self._by_l3()
            ),
        }

    def _any(self, flags: list[Any]) -> Any:
        if not flags:
            return 0
        found = self.model.new_bool_var("")
        self.model.add_max_equality(found, flags)
        return found

    def _by_l3(self) -> list[list[Cpus]]:
        groups: dict[Any, list[Cpus]] = {}
        for cores in self.cores.values():
            for core in cores:
                groups.setdefault(self.capacity.l3[min(core)], []).append(core)
        return list(groups.values())

    def _on_isolated(self, place: Place) -> Any:
        """1 for a node with isolated cores only, 2 for one with others too."""
        isolated = self.capacity.isolated
        quiet = self._any([self.takes[core] for core in self.cores[place] if core & isolated])
        others = self._any([self.takes[core] for core in self.cores[place] if not core & isolated])
        if isinstance(quiet, int) or isinstance(others, int):
            return quiet
        return quiet + self._both(quiet, others)

    def _kinds(self, place: Place) -> Any:
        """The kinds of a node's cores that have a guest core, less one."""
        kinds: dict[int, list[Any]] = {}
        for core in self.cores[place]:
            kinds.setdefault(self.capacity.rank(core), []).append(self.takes[core])
        if len(kinds) < 2:
            return 0
        used = sum(map(self._any, kinds.values()))
        return used - self._is(self.guest_cores[place], 1)

    def _helpers(self, place: Place) -> Any:
        """The crowd of QEMU's other threads on a node that has a guest core."""
        kept = len(self.capacity.housekeeping & self.capacity.cpus[place])
        crowd = -(-(self.capacity.helpers(place) + 1) // (3 * kept)) - 1 if kept else 0
        return crowd * self._is(self.guest_cores[place], 1) if crowd else 0

    def _left(self, cores: list[Cpus]) -> list[Any]:
        return [1 - self.takes[core] for core in cores if core in self.capacity.whole]
