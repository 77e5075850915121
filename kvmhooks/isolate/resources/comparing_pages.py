"""Pools of huge pages that are on record beside the host as it is: for ``status``.

The record tells how many pages were added for VMs, not how many there were. So a pool has lost
some for certain where it has fewer than were added, or than its VMs ask for: a pool that is made
smaller than what is in use keeps that as surplus pages, which count
(Documentation/admin-guide/mm/hugetlbpage.rst, ``nr_hugepages``).
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.kinds.hugepage_pools import HugePagePool
from kvmhooks.isolate.record import comparison
from kvmhooks.isolate.record.comparison import Comparison
from kvmhooks.isolate.record.state import PENDING
from kvmhooks.isolate.resources.hugepages import pool_path, wanted_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.system.system import System


def compared(
    system: System, state: State, live: Sequence[Held], *, is_busy: bool
) -> Iterator[Comparison]:
    """Yield each pool that has pages of ours; see ``Resource.compare``."""
    for key, pool in state.acquired(HugePagePool).items():
        having = [vm for vm in live if vm.claim.key in pool.shares]
        names = [vm.claim.name for vm in having]
        path = f"{pool_path(key)}/nr_hugepages"
        row = Comparison(key, f"/{path}", by=names, kind=HugePagePool.KIND)
        try:
            least = max(sum(pool.shares.values()) + pool.owed, _asked(system, live, key))
            count = int(system.read(path))
        except FileNotFoundError:  # the node is offline, and its pages with it
            yield row.judged(comparison.GONE)
            continue
        except (IsolationError, OSError, ValueError) as error:
            yield row.judged(comparison.UNKNOWN, words_of(error))
            continue
        row.should, row.now = f"{least} or more", str(count)
        is_starting = bool(having) and all(vm.state == PENDING for vm in having)
        if is_busy or pool.want is not None or (count < least and is_starting):
            yield row.judged(comparison.UNSETTLED, "it is being changed, or was when a hook died")
            continue
        kept = sum(pool.shares[vm.claim.key] for vm in having)
        owed = pool.owed + sum(pool.shares.values()) - kept
        yield _judged(row, owed, is_short=count < least)


def _asked(system: System, live: Sequence[Held], key: str) -> int:
    """Return how many pages of a pool the VMs need that had some added."""
    return sum(
        count
        for vm in live
        for node, size_kib, count in wanted_by(system, vm.claim)
        if f"{node}/{size_kib}" == key
    )


def _judged(row: Comparison, owed: int, *, is_short: bool) -> Comparison:
    if is_short and row.by:
        names = " and ".join(row.by)
        return row.judged(comparison.DRIFTED, remedy=f"the next start of {names} adds them again")
    if owed or not row.by:
        return row.judged(comparison.OWED, f"{owed} of its pages to give back, once they are free")
    return row.judged(comparison.HELD)
