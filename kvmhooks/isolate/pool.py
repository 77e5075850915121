"""The pools of huge pages: added to for a claim, and given back only as far as they are ours.

``nr_hugepages``, ``free_hugepages`` and ``resv_hugepages`` per size and node are described in the
kernel's Documentation/admin-guide/mm/hugetlbpage.rst, ``compact_memory`` in
admin-guide/sysctl/vm.rst. A request that cannot be met is cut silently, so the count is read
back; a pool made smaller than what is in use gets surplus pages, so only free ones are given back.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.pages import ANY_NODE, DEFAULT_SIZE
from kvmhooks.isolate.state import PENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held, State
    from kvmhooks.isolate.store import Store

_ATTEMPTS: Final = 3
_GLOBAL: Final = "sys/kernel/mm/hugepages"
_NODE: Final = "sys/devices/system/node/node"


def take(door: Door, store: Store, state: State, held: Held) -> None:
    """Make the pools large enough for a claim, or leave them as they were.

    Raises ``IsolationError`` with what is missing.
    """
    for node, size, count in wanted(door, held):
        key = f"{node}/{size}"
        try:
            need = count - _available(door, state, key, held)
        except FileNotFoundError:
            raise IsolationError(
                f"{held.claim.name}: huge pages of {size} KiB on node {node}: this host has no "
                "such pool"
            ) from None
        if need <= 0:
            continue
        held.pages[key] = held.pages.get(key, 0) + _grow(door, store, state, key, need)
        missing = need - held.pages[key]
        if missing > 0:
            give_back(door, store, state, held)
            raise IsolationError(
                f"{held.claim.name}: huge pages: {missing} of {count} pages of {size} KiB are "
                f"missing on node {node}, also after compaction: free memory there, or reserve "
                "them at boot (hugepages=)"
            )


def wanted(door: Door, held: Held) -> list[tuple[int, int, int]]:
    """(node, size in KiB, pages), with the host's default size filled in."""
    found = []
    for node, size, count in held.claim.hugepages:
        if size != DEFAULT_SIZE:
            found.append((node, size, count))
            continue
        default = _default_size(door)
        found.append((node, default, -(-count // default)))
    return found


def give_back(door: Door, store: Store, state: State, held: Held) -> None:
    """Turn a claim's share into a debt to the host, and pay it as far as pages are free."""
    for key, share in held.pages.items():
        pool = state.pools.setdefault(key, {"owed": 0})
        pool["owed"] += share
    held.pages = {}
    store.save(state.to_text())
    settle(door, store, state)


def settle(door: Door, store: Store, state: State) -> None:
    """Find out how far an interrupted change went, and give back what is owed and free."""
    for key, pool in list(state.pools.items()):
        try:
            _conclude(door, key, pool)
            free = max(_available(door, state, key, None), 0)
            give = min(pool["owed"], free)
            if give > 0:
                _set(door, store, state, key, -give)
                _conclude(door, key, pool)
        except FileNotFoundError:  # the node is offline, and its pages with it
            pool["owed"] = 0
        if pool["owed"] <= 0:
            del state.pools[key]


def _grow(door: Door, store: Store, state: State, key: str, need: int) -> int:
    """Ask for ``need`` more pages; compact and ask again if there are fewer. Return how many."""
    pool = state.pools.setdefault(key, {"owed": 0})
    debt = pool["owed"]  # pages of earlier claims; ours are on top of it until the claim has them
    for attempt in range(_ATTEMPTS):
        if attempt:
            _compact(door, key)
        _set(door, store, state, key, need - (pool["owed"] - debt))
        _conclude(door, key, pool)
        if pool["owed"] - debt >= need or door.is_late():
            break
    got, pool["owed"] = pool["owed"] - debt, debt
    if not debt:
        del state.pools[key]
    return got


def _set(door: Door, store: Store, state: State, key: str, delta: int) -> None:
    """Change a pool by ``delta``, with the intent on record before the write."""
    path = f"{_path(key)}/nr_hugepages"
    before = int(door.read(path))
    state.pools[key].update(before=before, want=before + delta)
    store.save(state.to_text())
    door.write(path, str(before + delta))


def _conclude(door: Door, key: str, pool: dict[str, int]) -> None:
    """Count what a change that was begun has really moved."""
    if "want" not in pool:
        return
    before, want = pool.pop("before"), pool.pop("want")
    moved = int(door.read(f"{_path(key)}/nr_hugepages")) - before
    least, most = sorted((0, want - before))
    pool["owed"] += max(least, min(moved, most))


def _available(door: Door, state: State, key: str, asking: Held | None) -> int:
    """Free, less what is reserved, less what is promised to claims that have not mapped theirs."""
    path = _path(key)
    free = int(door.read(f"{path}/free_hugepages"))
    size = key.split("/")[1]
    try:
        reserved = int(door.read(f"{_GLOBAL}/hugepages-{size}kB/resv_hugepages"))
    except FileNotFoundError:
        reserved = 0
    promised = sum(
        count
        for one in state.held.values()
        if one is not asking and one.state == PENDING
        for node, size_kib, count in wanted(door, one)
        if f"{node}/{size_kib}" == key
    )
    return free - reserved - promised


def _compact(door: Door, key: str) -> None:
    node = int(key.split("/", maxsplit=1)[0])
    path = "proc/sys/vm/compact_memory" if node == ANY_NODE else f"{_NODE}{node}/compact"
    if door.has(path):  # a kernel without CONFIG_COMPACTION has neither
        door.write(path, "1")


def _path(key: str) -> str:
    node, size = key.split("/")
    if int(node) == ANY_NODE:
        return f"{_GLOBAL}/hugepages-{size}kB"
    return f"{_NODE}{node}/hugepages/hugepages-{size}kB"


def _default_size(door: Door) -> int:
    for line in door.read("proc/meminfo").splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1])
    raise IsolationError("huge pages: this host has none")
