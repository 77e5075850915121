"""Whether a claim may be had beside those that live; nothing is changed here."""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import configuration
from kvmhooks.isolate.knob import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.configuration import Limits
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held


def check(
    claim: Claim, held: Iterable[Held], awaited: Iterable[tuple[Claim, int]], door: Door
) -> None:
    """Nobody else has the CPUs, they exist, and something is left for the host.

    ``awaited`` are claims of VMs that are expected, and until when. Raises ``IsolationError``.
    """
    held = [*held]
    for one in held:
        both = one.claim.exclusive & claim.exclusive
        if both and one.claim.key != claim.key:
            raise IsolationError(
                f"{claim.name}: CPUs {both} are {one.claim.name}'s alone "
                f"({one.claim.uuid}): stop it, or pin {claim.name} elsewhere "
                f"(`kvmhooks tune {claim.name}`)"
            )
    for other, until in awaited:
        both = other.exclusive & claim.exclusive
        if both and other.key != claim.key:
            left = until - door.now()
            raise IsolationError(
                f"{claim.name}: CPUs {both} are kept for {other.name}, which is expected "
                f"within {left:.0f} s"
            )
    view = View.read(door, held)
    absent = claim.exclusive - view.online
    if absent:
        raise IsolationError(f"{claim.name}: CPUs {absent} are not online on this host")
    if claim.exclusive and not view.online - view.exclusive - claim.exclusive:
        raise IsolationError(
            f"{claim.name}: CPUs {claim.exclusive} are all that is left of {view.online}: the "
            "host itself needs at least one"
        )


def check_housekeeping(claim: Claim, limits: Limits) -> None:
    """None of the CPUs is one that the administrator keeps. Raises ``IsolationError``."""
    both = claim.exclusive & limits.housekeeping
    if both:
        raise IsolationError(
            f"{claim.name}: CPUs {both} are the host's (/{configuration.HOST}: host.housekeeping): "
            f"pin {claim.name} elsewhere (`kvmhooks tune {claim.name}`)"
        )
