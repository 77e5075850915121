"""Devices that are on record beside the host as it is: for ``status``, and no call of a hook."""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.record import comparison
from kvmhooks.isolate.record.comparison import Comparison
from kvmhooks.isolate.record.state import PENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvmhooks.isolate.kinds.kind import Acquisition
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.resources.resource import Access, Devices


def compared(
    devices: Devices, access: Access, state: State, live: Sequence[Held], *, is_busy: bool
) -> Iterator[Comparison]:
    """Yield each thing of a kind with its state; see ``Resource.compare``."""
    for key, found in state.resources.get(devices.KIND, {}).items():
        asking = [
            (vm, demand)
            for vm in live
            for demand in vm.claim.demands.get(devices.KIND, ())
            if demand.key == key
        ]
        names = [vm.claim.name for vm, _ in asking]
        row = Comparison(key, devices.place(key), by=names, kind=devices.KIND)
        try:
            seen = devices.see(access, key, found, asking[-1][1] if asking else None)
        except (IsolationError, OSError) as error:
            yield row.judged(comparison.UNKNOWN, words_of(error))
            continue
        if seen is None:
            yield row.judged(comparison.GONE)
            continue
        row.was, row.should, row.now = seen
        is_starting = bool(asking) and all(vm.state == PENDING for vm, _ in asking)
        yield _judged(
            row, found, access, is_moving=is_busy or is_starting or devices.is_open(found)
        )


def _judged(row: Comparison, found: Acquisition, access: Access, *, is_moving: bool) -> Comparison:
    """Give a thing that was looked at its state."""
    waits = found.waits
    if not row.by:
        if waits is not None and waits.is_alive(access.system):
            return row.judged(comparison.OWED, f"given back when process {waits.pid} ends")
        return row.judged(comparison.OWED, remedy=comparison.RECONCILE)
    if row.now == row.should:
        return row.judged(comparison.HELD)
    if is_moving:
        return row.judged(comparison.UNSETTLED, "its start has not come to its end")
    names = " and ".join(row.by)
    return row.judged(comparison.DRIFTED, remedy=f"the next start of {names} sets it again")
