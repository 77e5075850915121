"""Virtual functions that a physical one has to have, and those that were made."""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import Acquisition, Demand, process, whole, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Final, Self

    from kvmhooks.isolate.system.process_stat import Process


class VfPoolDemand(Demand):
    """A pool of virtual functions that has to be there."""

    __slots__ = ("count", "pf")

    KIND = "vfs"
    FIELDS: ClassVar = {"pf": word, "count": whole}

    def __init__(self, pf: str, count: int) -> None:
        self.pf = pf
        """The address of the physical function."""
        self.count = count
        """The number of virtual ones, at least."""

    @property
    def key(self) -> str:
        """The address of the physical function."""
        return self.pf

    @classmethod
    def of_setting(cls, text: str) -> tuple[Self, ...]:
        """Return the demands in ``0000:3b:00.0=8,…``. Raises ``ValueError``."""
        pairs = (pair.split("=") for pair in text.split(",") if pair)
        return tuple(cls(pf, int(count)) for pf, count in pairs)

    def to_setting(self) -> str:
        """Return its part of that."""
        return f"{self.pf}={self.count}"


class VfPool(Acquisition):
    """Virtual functions that we made, or are about to make, where there were none."""

    __slots__ = ("identity", "made", "probe", "wanted")

    KIND = "vfs"
    FIELDS: ClassVar = {
        "wanted": int, "made": int, "probe": str, "identity": str, "waits": process,
    }  # fmt: skip

    def __init__(
        self,
        wanted: int,
        probe: str,
        *,
        identity: str,
        made: int = 0,
        waits: Process | None = None,
    ) -> None:
        self.wanted = wanted
        self.made = made
        """The number of them once they were made; 0 until then."""
        self.probe = probe
        """The value of ``sriov_drivers_autoprobe`` before; empty once that is settled."""
        self.identity = identity
        """The mark of the physical function, which a later one at the same address has not."""
        self.waits = waits


DEMAND: Final = VfPoolDemand
ACQUISITION: Final = VfPool
