"""Pools of virtual functions: made once for each physical one, and removed when nobody uses them.

``sriov_numvfs``, ``sriov_totalvfs`` and ``sriov_drivers_autoprobe`` are those of Documentation/ABI/
testing/sysfs-bus-pci. The kernel refuses to change a pool that is not empty (EBUSY,
``sriov_numvfs_store()``, drivers/pci/iov.c), and to empty it takes each function from whoever has
it. So a pool that is large enough is shared, whoever made it, and one that is too small is refused.

Functions are made while no driver of the host may take them: they would come up as the host's own
network cards. The switch-off is for this moment only: the switch is back before the VM starts. All
of it happens under the lock of devices, and is on record before the first write.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.administrator import HOST
from kvmhooks.isolate.kinds.vf_pools import VfPool
from kvmhooks.isolate.resources.resource import PATIENCE, Devices
from kvmhooks.isolate.resources.vfio import DEVICES, driver_of, identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.resources.foreseen_vfs import ForeseenVfs
    from kvmhooks.isolate.resources.resource import Access, Means
    from kvmhooks.isolate.system.processes import StuckError
    from kvmhooks.isolate.system.system import System

COUNT: Final = "sriov_numvfs"
PROBE: Final = "sriov_drivers_autoprobe"
_MOST: Final = float("inf")
"""Making many functions may take all the time that a start has."""


class VfPools(Devices):
    """Pools of virtual functions that have to be there."""

    KIND = VfPool.KIND
    LABEL = "sriov"
    GONE = "0"
    WAITING = "still waits for its driver"

    def own(self, system: System, claim: Claim) -> Sequence[str]:
        """Return nothing: a pool is shared."""
        del system, claim
        return ()

    def look(self, means: Means, claim: Claim, demand: VfPoolDemand) -> int:
        """Return a pool's size: as the VM asks, but one that is yet to be made as all ask."""
        system, pf, count = means.system, demand.pf, demand.count
        total = _number(system, pf, "sriov_totalvfs")
        if total is None and not system.has(f"{DEVICES}/{pf}"):
            raise IsolationError("found no such device, expected a card with virtual functions")
        if total is None:
            raise IsolationError("found no SR-IOV, expected a physical function that has it")
        if count > total:
            raise IsolationError(f"found at most {total} virtual functions, expected {count}")
        if _number(system, pf, COUNT):
            return count
        from kvmhooks.isolate.claims import vf_demand  # noqa: PLC0415 -- the pool is mostly there

        asked = vf_demand.configured(system, pf)
        if asked is None:
            return min(total, max(count, vf_demand.known(system, pf, but=claim.name)))
        if not count <= asked <= total:
            expected = f"{count} or more" if asked < count else f"{total} at most"
            raise IsolationError(f"found vfs = {asked} in /{HOST}, expected {expected}")
        return asked

    def note(self, system: System, state: State, demand: VfPoolDemand, seen: int) -> bool:
        """Put on record that a pool is about to be made; False where it is there."""
        current = _number(system, demand.pf, COUNT) or 0
        if current >= seen:
            return False
        if current:
            raise IsolationError(
                f"found a pool of {current} virtual functions, expected {seen}: a pool that is "
                f"not empty cannot grow: stop the VMs that use it, write 0 to its {COUNT}, or ask "
                f"for {current}"
            )
        pools = state.acquired(VfPool)
        known = pools.get(demand.pf)
        identity = identity_of(system, demand.pf)
        if known is not None and known.identity == identity:
            self.check_waits(system, known, ": wait for it")
            known.wanted, known.made = seen, 0
        else:
            known = pools[demand.pf] = VfPool(seen, "", identity=identity)
        probe = _number(system, demand.pf, PROBE)
        if probe or not known.probe:  # else whoever was interrupted has switched it off
            known.probe = "" if probe is None else str(probe)
        return True

    def make(self, means: Means, demand: VfPoolDemand, seen: int) -> None:
        """Make a pool while no driver of the host may take its functions."""
        system, pf = means.system, demand.pf
        with means.begin() as state:
            probe = state.acquired(VfPool)[pf].probe
        seconds = means.seconds(_MOST)
        if _number(system, pf, PROBE):
            _write(system, pf, PROBE, "0", PATIENCE)
        try:
            _write(system, pf, COUNT, str(seen), seconds)
        except OSError:  # of a write that hangs functions may still come
            _switch_back(system, pf, probe)
            raise
        _switch_back(system, pf, probe)
        found = _number(system, pf, COUNT)
        if found != seen:
            raise IsolationError(f"its driver made {found} virtual functions instead of {seen}")
        with means.begin() as state:
            pool = state.acquired(VfPool)[pf]
            pool.probe, pool.made = "", seen
            means.save(state)

    def place(self, key: str) -> str:
        """Return the file with their number."""
        return f"/{DEVICES}/{key}/{COUNT}"

    def see(
        self, access: Access, key: str, found: VfPool, demand: VfPoolDemand | None
    ) -> tuple[str, str, str] | None:
        """Return their numbers."""
        if found.identity != identity_of(access.system, key):
            return None
        now = access.system.read(f"{DEVICES}/{key}/{COUNT}")
        return "0", "0" if demand is None else str(found.made or found.wanted), now

    def is_open(self, found: VfPool) -> bool:
        """Return whether they are being made, or no driver may take them yet."""
        return not found.made or bool(found.probe)

    def stuck(self, demand: VfPoolDemand, error: StuckError) -> str:
        """Return the words for a driver that hesitates."""
        del demand
        return f"its driver does not make functions: {error}"

    def give_back(self, means: Means, key: str, found: VfPool) -> str:
        """Remove a pool, unless somebody uses a part of it: then return who does."""
        system = means.system
        if found.identity != identity_of(system, key):
            return ""
        count = _number(system, key, COUNT) or 0
        is_ours = count == found.made if found.made else count <= found.wanted
        if count and is_ours:  # else somebody else has changed it
            for function in functions_of(system, key):
                driver = driver_of(system, function)
                if driver:
                    return f"{function} is with {driver}: its pool stays"
            _write(system, key, COUNT, "0", PATIENCE)
        _switch_back(system, key, found.probe)
        return ""

    def describe(self, found: VfPool) -> str:
        """Return how many functions it was to have."""
        return str(found.wanted)

    def foresee(self, system: System) -> ForeseenVfs:
        """Return the functions as a rehearsal takes them."""
        from kvmhooks.isolate.resources.foreseen_vfs import ForeseenVfs  # noqa: PLC0415 -- none is a VM's start

        return ForeseenVfs(system)


RESOURCE: Final = VfPools()


def functions_of(system: System, pf: str) -> list[str]:
    """Return the addresses of the virtual functions that a physical one has."""
    names = [name for name in system.names(f"{DEVICES}/{pf}") if name.startswith("virtfn")]
    return sorted(system.link(f"{DEVICES}/{pf}/{name}").rpartition("/")[2] for name in names)


def _switch_back(system: System, pf: str, probe: str) -> None:
    """Let drivers take functions again, if they could before."""
    if probe and _number(system, pf, PROBE) == 0:
        _write(system, pf, PROBE, probe, PATIENCE)


def _number(system: System, pf: str, name: str) -> int | None:
    """Return the number in a file; None where there is none, as ``PROBE`` before Linux 4.12."""
    try:
        return int(system.read(f"{DEVICES}/{pf}/{name}"))
    except (OSError, ValueError):
        return None


def _write(system: System, pf: str, name: str, text: str, seconds: float) -> None:
    system.write_within(seconds, f"{DEVICES}/{pf}/{name}", text)
