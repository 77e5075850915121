"""Pools of virtual functions: made once for each physical one, and removed when nobody uses them.

``sriov_numvfs``, ``sriov_totalvfs`` and ``sriov_drivers_autoprobe`` are those of Documentation/ABI/
testing/sysfs-bus-pci. The kernel refuses to change a pool that is not empty (EBUSY,
``sriov_numvfs_store()``, drivers/pci/iov.c), and to empty it takes each function from whoever has
it. So a pool that is large enough is shared, whoever made it, and one that is too small is refused.

Functions are made while no driver of the host may take them: they would come up as the host's own
network cards. That is for this moment only: the switch is back before the VM starts. All of it
happens under the lock of ``functions``, and is on record before the first write.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.children import StuckError
from kvmhooks.isolate.configuration import HOST
from kvmhooks.isolate.functions import (
    DEVICES,
    PATIENCE,
    conclude,
    driver_of,
    identity_of,
    left,
)
from kvmhooks.isolate.report import APPLIED, FAILED, REFUSAL
from kvmhooks.isolate.state import Process, VfPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.functions import Entry
    from kvmhooks.isolate.report import Report
    from kvmhooks.isolate.state import State
    from kvmhooks.isolate.store import Store

COUNT: Final = "sriov_numvfs"
PROBE: Final = "sriov_drivers_autoprobe"


def take(door: Door, store: Store, entry: Entry, claim: Claim, until: float) -> None:
    """See that each pool that a claim asks for is there.

    Raises ``IsolationError``; ``settle`` then removes what was made.
    """
    wanted = [(pf, _size(door, claim, pf, count)) for pf, count in claim.pools]
    with entry() as state:
        todo = [(pf, count) for pf, count in wanted if _note(door, state, claim, pf, count)]
        store.save(state.to_text())
    for pf, count in todo:
        try:
            _make(door, pf, count, until)
        except StuckError as error:
            with entry() as state:
                state.vfs[pf].waits = Process.find(door, error.pid)
                store.save(state.to_text())
            raise IsolationError(
                f"{claim.name}: {pf}: its driver does not make functions: {error}"
            ) from error
        except (IsolationError, OSError) as error:
            raise IsolationError(f"{claim.name}: {pf}: {error}") from error
        with entry() as state:
            state.vfs[pf].probe, state.vfs[pf].made = "", count
            store.save(state.to_text())


def _size(door: Door, claim: Claim, pf: str, count: int) -> int:
    """How large a pool has to be: as the VM asks, but one that is yet to be made as all ask."""
    at = f"{claim.name}: {pf}"
    total = _number(door, pf, "sriov_totalvfs")
    if total is None:
        raise IsolationError(f"{at}: found no SR-IOV, expected a physical function that has it")
    if count > total:
        raise IsolationError(f"{at}: found at most {total} virtual functions, expected {count}")
    if _number(door, pf, COUNT):
        return count
    from kvmhooks.isolate import demand  # noqa: PLC0415 -- most VMs make no pool

    said = demand.configured(door, pf)
    if said is None:
        return min(total, max(count, demand.known(door, pf, but=claim.name)))
    if not count <= said <= total:
        expected = f"{count} or more" if said < count else f"{total} at most"
        raise IsolationError(f"{at}: found vfs = {said} in /{HOST}, expected {expected}")
    return said


def _note(door: Door, state: State, claim: Claim, pf: str, count: int) -> bool:
    """Put on record that a pool is about to be made; False where it is there."""
    at = f"{claim.name}: {pf}"
    current = _number(door, pf, COUNT) or 0
    if current >= count:
        return False
    if current:
        raise IsolationError(
            f"{at}: found a pool of {current} virtual functions, expected {count}: a pool that is "
            f"not empty cannot grow: stop the VMs that use it, write 0 to its {COUNT}, or ask for "
            f"{current}"
        )
    known = state.vfs.get(pf)
    identity = identity_of(door, pf)
    if known is not None and known.identity == identity:
        if known.waits is not None and known.waits.is_alive(door):
            raise IsolationError(f"{at}: process {known.waits.pid} still waits for its driver")
        known.wanted, known.made = count, 0
        return True
    probe = _number(door, pf, PROBE)
    state.vfs[pf] = VfPool(count, "" if probe is None else str(probe), identity=identity)
    return True


def _make(door: Door, pf: str, count: int, until: float) -> None:
    probe = _number(door, pf, PROBE)
    if probe:
        _write(door, pf, PROBE, "0", PATIENCE)
    _write(door, pf, COUNT, str(count), left(door, until))
    if probe:
        _write(door, pf, PROBE, str(probe), PATIENCE)
    found = _number(door, pf, COUNT)
    if found != count:
        raise IsolationError(f"its driver made {found} virtual functions instead of {count}")


def settle(door: Door, store: Store, entry: Entry, report: Report) -> None:
    """Remove every pool of ours that is owed and that nobody uses; the others stay on record."""
    with entry() as state:
        todo = {pf: state.vfs[pf] for pf in state.owed("vfs")}
    done: list[str] = []
    stuck: dict[str, Process | None] = {}
    for pf, pool in todo.items():
        try:
            user = _remove(door, pf, pool)
        except StuckError as error:
            stuck[pf] = Process.find(door, error.pid)
            report.add(f"sriov/{pf}", FAILED, str(pool.wanted), str(error))
        except (IsolationError, OSError) as error:
            report.add(f"sriov/{pf}", FAILED, str(pool.wanted), str(error))
        else:
            if user:
                report.add(f"sriov/{pf}", REFUSAL, str(pool.wanted), f"{user}: its pool stays")
            else:
                report.add(f"sriov/{pf}", APPLIED, "0")
                done.append(pf)
    conclude(store, entry, "vfs", done, stuck)


def _remove(door: Door, pf: str, pool: VfPool) -> str:
    """Take a pool away again, unless somebody uses a part of it: then who does."""
    if pool.identity != identity_of(door, pf):
        return ""
    if pool.waits is not None and pool.waits.is_alive(door):
        raise IsolationError(f"process {pool.waits.pid} still waits for its driver")
    found = _number(door, pf, COUNT) or 0
    is_ours = found == pool.made if pool.made else found <= pool.wanted
    if found and is_ours:  # else somebody else has changed it
        for function in functions_of(door, pf):
            driver = driver_of(door, function)
            if driver:
                return f"{function} is with {driver}"
        _write(door, pf, COUNT, "0", PATIENCE)
    if pool.probe and _number(door, pf, PROBE) == 0:
        _write(door, pf, PROBE, pool.probe, PATIENCE)
    return ""


def functions_of(door: Door, pf: str) -> list[str]:
    """The addresses of the virtual functions that a physical one has."""
    names = [name for name in door.names(f"{DEVICES}/{pf}") if name.startswith("virtfn")]
    return sorted(door.link(f"{DEVICES}/{pf}/{name}").rpartition("/")[2] for name in names)


def _number(door: Door, pf: str, name: str) -> int | None:
    """What a file says; None where there is none, as ``PROBE`` before Linux 4.12."""
    try:
        return int(door.read(f"{DEVICES}/{pf}/{name}"))
    except (OSError, ValueError):
        return None


def _write(door: Door, pf: str, name: str, text: str, seconds: float) -> None:
    door.write_within(seconds, f"{DEVICES}/{pf}/{name}", text)
