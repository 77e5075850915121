"""The pools of huge pages: added to for a claim, and given back only as far as they are ours.

``nr_hugepages``, ``free_hugepages`` and ``resv_hugepages`` per size and node are described in the
kernel's Documentation/admin-guide/mm/hugetlbpage.rst, ``compact_memory`` in
admin-guide/sysctl/vm.rst. A request that cannot be met is cut silently, so the count is read
back; a pool made smaller than what is in use gets surplus pages, so only free ones are given back.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE, DEFAULT_SIZE
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand, HugePagePool
from kvmhooks.isolate.record.report import APPLIED, FAILED
from kvmhooks.isolate.record.state import PENDING
from kvmhooks.isolate.resources.resource import Resource, held_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from kvmhooks.isolate.claims.administrator import Limits
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.comparison import Comparison
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.resources.resource import Access, Means
    from kvmhooks.isolate.system.system import System

_ATTEMPTS: Final = 3
_GLOBAL: Final = "sys/kernel/mm/hugepages"
_NODE: Final = "sys/devices/system/node/node"


class PagePools(Resource):
    """Pools of huge pages that have to be large enough."""

    KIND = HugePagePool.KIND
    LABEL = "hugepages"
    LOCK = "pages.lock"
    IS_SLOW = False

    def budget(self, limits: Limits) -> float:
        """Return the seconds that a start with huge pages may take."""
        return limits.budget_hugepages

    def acquire(self, means: Means, claim: Claim) -> None:
        """Make the pools large enough. Raises ``IsolationError`` with what is missing.

        The pages had by then are the claim's.
        """
        system = means.system
        for attempt in range(_ATTEMPTS):
            with means.begin() as state:
                intended = [
                    (pool, _intend(system, state, pool, need))
                    for pool, _, need in _missing(system, state, held_by(state, claim.key).claim)
                ]
                means.save(state)
            for pool, count in intended:
                if attempt:
                    _compact(system, pool)
                system.write(f"{pool_path(pool)}/nr_hugepages", str(count))
            with means.begin() as state:
                held = held_by(state, claim.key)
                for pool, _ in intended:
                    _share(system, state, pool, claim.key)
                means.save(state)
                lacking = _missing(system, state, held.claim)
            if not lacking:
                return
            if system.is_late():
                break
        pool, count, need = lacking[0]
        node, size = pool.split("/")
        raise IsolationError(
            f"{claim.name}: huge pages: {need} of {count} pages of {size} KiB are missing on node "
            f"{node}, also after compaction: free memory there, or reserve them at boot "
            "(hugepages=)"
        )

    def mark_pending(self, state: State, held: Held) -> None:
        """Turn a claim's share of each pool into a debt to the host."""
        for pool in state.acquired(HugePagePool).values():
            pool.owed += pool.shares.pop(held.claim.key, 0)

    def release_pending(self, means: Means, report: Report) -> None:
        """Find out how far an interrupted change went, and give back what is owed and free.

        Pages that are in use stay owed, which is no failure.
        """
        with means.begin() as state:
            due = state.owed(self.KIND)
        for key in due:
            try:
                given = _give_back(means, key)
            except OSError as error:
                report.add(f"{self.LABEL}/{key}", FAILED, "", words_of(error))
            else:
                if given:
                    report.add(f"{self.LABEL}/{key}", APPLIED, f"-{given}")

    def compare(
        self, access: Access, state: State, live: Sequence[Held], *, is_busy: bool
    ) -> Iterator[Comparison]:
        from kvmhooks.isolate.resources.comparing_pages import compared  # noqa: PLC0415 -- no hook does

        return compared(access.system, state, live, is_busy=is_busy)


RESOURCE: Final = PagePools()


def _missing(system: System, state: State, claim: Claim) -> list[tuple[str, int, int]]:
    """Return (pool, pages that a claim needs, pages that are missing for it), where some are.

    Raises ``IsolationError`` for a pool that this host does not have.
    """
    found = []
    for node, size, count in wanted_by(system, claim):
        pool = f"{node}/{size}"
        try:
            need = count - _available(system, state, pool, claim.key)
        except FileNotFoundError:
            raise IsolationError(
                f"{claim.name}: huge pages of {size} KiB on node {node}: this host has no such pool"
            ) from None
        if need > 0:
            found.append((pool, count, need))
    return found


def wanted_by(system: System, claim: Claim) -> list[tuple[int, int, int]]:
    """Return (node, size in KiB, pages), with the host's default size filled in."""
    found = []
    for pages in claim.of(HugePageDemand):
        if pages.size_kib != DEFAULT_SIZE:
            found.append((pages.node, pages.size_kib, pages.count))
            continue
        default = _default_size(system)
        found.append((pages.node, default, -(-pages.count // default)))
    return found


def _give_back(means: Means, key: str) -> int:
    """Give back the pages of a pool that are owed and free; return how many those are.

    Raises ``OSError``.
    """
    with means.begin() as state:
        count = _owed_count(means.system, state, key)
        _forget(state, key)
        means.save(state)
    if count is None:
        return 0
    means.system.write(f"{pool_path(key)}/nr_hugepages", str(count))
    with means.begin() as state:
        moved = _conclude(means.system, key, state.acquired(HugePagePool)[key])
        state.acquired(HugePagePool)[key].owed += moved
        _forget(state, key)
        means.save(state)
    return -moved


def _owed_count(system: System, state: State, key: str) -> int | None:
    """Return how many pages a pool is about to have; None where none can be given back."""
    pool = state.acquired(HugePagePool)[key]
    try:
        pool.owed += _conclude(system, key, pool)
        give = min(pool.owed, max(_available(system, state, key, ""), 0))
        return _intend(system, state, key, -give) if give > 0 else None
    except FileNotFoundError:  # the node is offline, and its pages with it
        pool.owed, pool.before, pool.want = 0, None, None
        return None


def _share(system: System, state: State, key: str, of: str) -> None:
    """Note what a change has added for a claim."""
    pool = state.acquired(HugePagePool)[key]
    moved = _conclude(system, key, pool)
    if moved:
        pool.shares[of] = pool.shares.get(of, 0) + moved
    _forget(state, key)


def _forget(state: State, key: str) -> None:
    if state.acquired(HugePagePool)[key].is_over:
        del state.acquired(HugePagePool)[key]


def _intend(system: System, state: State, key: str, delta: int) -> int:
    """Note that a pool is about to be changed by ``delta``; return how many pages it will have.

    A change before, which somebody began who was killed, is over: its pages are the host's.
    """
    pool = state.acquired(HugePagePool).setdefault(key, HugePagePool())
    pool.owed += _conclude(system, key, pool)
    pool.before = int(system.read(f"{pool_path(key)}/nr_hugepages"))
    pool.want = pool.before + delta
    return pool.want


def _conclude(system: System, key: str, pool: HugePagePool) -> int:
    """Count what a change that was begun has really moved."""
    if pool.want is None or pool.before is None:
        return 0
    before, want = pool.before, pool.want
    moved = int(system.read(f"{pool_path(key)}/nr_hugepages")) - before
    pool.before = pool.want = None
    least, most = sorted((0, want - before))
    return max(least, min(moved, most))


def _available(system: System, state: State, key: str, asking: str) -> int:
    """Return the free pages without those reserved, or promised to claims and not yet mapped."""
    path = pool_path(key)
    free = int(system.read(f"{path}/free_hugepages"))
    size = key.split("/")[1]
    try:
        reserved = int(system.read(f"{_GLOBAL}/hugepages-{size}kB/resv_hugepages"))
    except FileNotFoundError:
        reserved = 0
    promised = sum(
        count
        for vm in state.held.values()
        if vm.claim.key != asking and vm.state == PENDING
        for node, size_kib, count in wanted_by(system, vm.claim)
        if f"{node}/{size_kib}" == key
    )
    return free - reserved - promised


def _compact(system: System, key: str) -> None:
    node = int(key.split("/", maxsplit=1)[0])
    path = "proc/sys/vm/compact_memory" if node == ANY_NODE else f"{_NODE}{node}/compact"
    if system.has(path):  # a kernel without CONFIG_COMPACTION has neither
        system.write(path, "1")


def pool_path(key: str) -> str:
    node, size = key.split("/")
    if int(node) == ANY_NODE:
        return f"{_GLOBAL}/hugepages-{size}kB"
    return f"{_NODE}{node}/hugepages/hugepages-{size}kB"


def _default_size(system: System) -> int:
    for line in system.lines("proc/meminfo"):
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1])
    raise IsolationError("huge pages: this host has none")
