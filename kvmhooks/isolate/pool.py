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
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held, State
    from kvmhooks.isolate.store import Store

LOCK: Final = "pages.lock"
"""Held by whoever changes a pool. To find many pages may take the kernel seconds, in which all
other hooks go on: the lock of the record is held only before and after. Who holds that one never
waits for this one."""

_ATTEMPTS: Final = 3
_GLOBAL: Final = "sys/kernel/mm/hugepages"
_NODE: Final = "sys/devices/system/node/node"


def take(
    door: Door, store: Store, entry: Callable[[], AbstractContextManager[State]], key: str
) -> None:
    """Make the pools large enough for a claim that is held, under ``LOCK``.

    ``entry`` opens the record. Raises ``IsolationError`` with what is missing; what was had by then
    is in the claim's ``pages``.
    """
    for attempt in range(_ATTEMPTS):
        with entry() as state:
            held = held_by(state, key)
            intended = [
                (pool, _intend(door, state, pool, need))
                for pool, _, need in missing(door, state, held)
            ]
            store.save(state.to_text())
        for pool, count in intended:
            if attempt:
                _compact(door, pool)
            door.write(f"{_path(pool)}/nr_hugepages", str(count))
        with entry() as state:
            held = held_by(state, key)
            for pool, _ in intended:
                moved = _conclude(door, pool, state.pools[pool])
                held.pages[pool] = held.pages.get(pool, 0) + moved
                if not state.pools[pool]["owed"]:
                    del state.pools[pool]
            store.save(state.to_text())
            lacking = missing(door, state, held)
        if not lacking:
            return
        if door.is_late():
            break
    pool, count, need = lacking[0]
    node, size = pool.split("/")
    raise IsolationError(
        f"{held.claim.name}: huge pages: {need} of {count} pages of {size} KiB are missing on node "
        f"{node}, also after compaction: free memory there, or reserve them at boot (hugepages=)"
    )


def held_by(state: State, key: str) -> Held:
    """The claim. Raises ``IsolationError`` when it was taken away while nobody held the record."""
    if key not in state.held:
        raise IsolationError(f"{key}: its claim was given back meanwhile (`kvmhooks undo`)")
    return state.held[key]


def missing(door: Door, state: State, held: Held) -> list[tuple[str, int, int]]:
    """(pool, pages that a claim needs, pages that are missing for it), where some are.

    Raises ``IsolationError`` for a pool that this host does not have.
    """
    found = []
    for node, size, count in wanted(door, held):
        pool = f"{node}/{size}"
        try:
            need = count - _available(door, state, pool, held)
        except FileNotFoundError:
            raise IsolationError(
                f"{held.claim.name}: huge pages of {size} KiB on node {node}: this host has no "
                "such pool"
            ) from None
        if need > 0:
            found.append((pool, count, need))
    return found


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


def owe(state: State, held: Held) -> None:
    """Turn a claim's share into a debt to the host, which ``settle`` pays."""
    for pool, share in held.pages.items():
        state.pools.setdefault(pool, {"owed": 0})
        state.pools[pool]["owed"] += share
    held.pages = {}


def settle(door: Door, store: Store, state: State) -> None:
    """Find out how far an interrupted change went, and give back what is owed and free."""
    for key, pool in list(state.pools.items()):
        try:
            pool["owed"] += _conclude(door, key, pool)
            give = min(pool["owed"], max(_available(door, state, key, None), 0))
            if give > 0:
                count = _intend(door, state, key, -give)
                store.save(state.to_text())
                door.write(f"{_path(key)}/nr_hugepages", str(count))
                pool["owed"] += _conclude(door, key, pool)
        except FileNotFoundError:  # the node is offline, and its pages with it
            pool["owed"] = 0
        if pool["owed"] <= 0:
            del state.pools[key]


def _intend(door: Door, state: State, key: str, delta: int) -> int:
    """Note that a pool is about to be changed by ``delta``; return how many pages it will have."""
    before = int(door.read(f"{_path(key)}/nr_hugepages"))
    state.pools.setdefault(key, {"owed": 0}).update(before=before, want=before + delta)
    return before + delta


def _conclude(door: Door, key: str, pool: dict[str, int]) -> int:
    """Count what a change that was begun has really moved."""
    if "want" not in pool:
        return 0
    before, want = pool.pop("before"), pool.pop("want")
    moved = int(door.read(f"{_path(key)}/nr_hugepages")) - before
    least, most = sorted((0, want - before))
    return max(least, min(moved, most))


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
    for line in door.lines("proc/meminfo"):
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1])
    raise IsolationError("huge pages: this host has none")
