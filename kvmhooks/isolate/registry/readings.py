"""The registry as far as it only tells: without the record's lock, and without a change."""

from __future__ import annotations

from kvmhooks.isolate.record.report import FAILED, REFUSAL
from kvmhooks.isolate.registry.liveness import is_live
from kvmhooks.isolate.registry.transaction import Transactions
from kvmhooks.isolate.system.process_stat import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.report import Report, Result
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System


class Readings:
    """The claims of one host as they are on record."""

    def __init__(self, system: System, store: Store, helper: Sequence[str] = ()) -> None:
        self.system = system
        self.store = store
        self.helper = helper
        """The words that run `kvmhooks`, for what the standard library cannot do."""
        self._transactions = Transactions(system, store, helper)

    def look(self) -> State:
        """Return the state on record, without the lock and without a change."""
        return self._transactions.look()

    def claims(self) -> list[Claim]:
        """Return the claims of VMs that live or are awaited, without the lock and a change."""
        state = self.look()
        ended = self.store.released()
        claims = [held.claim for held in state.held.values() if is_live(self.system, held, ended)]
        return claims + [claim for claim, _ in self._awaited(state) if claim.key not in state.held]

    def ended(self, state: State) -> set[str]:
        """Return the keys of the claims whose VMs are gone: the next transaction drops them."""
        noted = self.store.released()
        return {key for key, held in state.held.items() if not is_live(self.system, held, noted)}

    def waiter(self) -> Process | None:
        """Return the process that waits, if it lives. Raises ``IsolationError``."""
        found = Process.from_text(self.store.waiter())
        return found if found is not None and found.is_alive(self.system) else None

    def left_over(self, report: Report) -> list[Result]:
        """Return the results that are not as before, after a claim was given back.

        While other VMs live, the kernel's refusals are refusals to them.
        """
        state = self.look()
        refused = [] if state.held else report.of(REFUSAL)
        return [*report.of(FAILED), *(result for result in refused if result.key in state.records)]

    def _awaited(self, state: State) -> list[tuple[Claim, int]]:
        """Return the reservations that have not expired; the rest is forgotten."""
        now = self.system.now()
        state.reserved = {key: known for key, known in state.reserved.items() if now < known[1]}
        return list(state.reserved.values())
