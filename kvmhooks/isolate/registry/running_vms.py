"""Claims brought up to date with VMs that run: where their vCPUs are, which devices they have."""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.registry import hotplug
from kvmhooks.isolate.vm import affinity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.system.system import System


def reread_cpus(
    system: System, state: State, awaited: Iterable[Claim], every: Iterable[Held]
) -> None:
    """Bring claims up to date with where their vCPUs are."""
    awaited = [*awaited]
    for held in _owning(system, every):
        others = [other.claim for other in state.held.values() if other is not held]
        others += [claim for claim in awaited if claim.key != held.claim.key]
        affinity.reread(system, held, others, View.read(system, ()).online)


def reread_devices(system: System, every: Iterable[Held]) -> None:
    """Bring claims up to date with which devices their VMs have."""
    for held in _owning(system, every):
        hotplug.reread(system, held)


def _owning(system: System, every: Iterable[Held]) -> Iterator[Held]:
    """Yield the VMs that run on CPUs of their own."""
    for held in every:
        if held.needs_follower and held.holder.is_alive(system):
            yield held
