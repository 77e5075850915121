"""PCI functions that a VM gets bound to ``vfio-pci``, and what they had before."""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import Acquisition, Demand, process, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar, Final

    from kvmhooks.isolate.system.process_stat import Process


def _words(fields: Any) -> tuple[str, ...]:
    return tuple(map(str, fields))


class FunctionDemand(Demand):
    """A PCI function that has to be bound to ``vfio-pci``."""

    __slots__ = ("address", "allow")

    KIND = "functions"
    FIELDS: ClassVar = {"address": word, "allow": _words}

    def __init__(self, address: str, allow: Iterable[str] = ()) -> None:
        self.address = address
        self.allow = tuple(allow)
        """The uses of the host's that may end with it (``devices.allow`` of the metadata)."""

    @property
    def key(self) -> str:
        """Its address."""
        return self.address


class Origin(Acquisition):
    """The state of a PCI function before ``vfio-pci`` was bound to it."""

    __slots__ = ("driver", "identity", "override")

    KIND = "functions"
    FIELDS: ClassVar = {"driver": str, "override": str, "identity": str, "waits": process}

    def __init__(
        self, driver: str, override: str, *, identity: str, waits: Process | None = None
    ) -> None:
        self.driver = driver
        """Its driver; empty for none."""
        self.override = override
        """Its ``driver_override``; empty for none."""
        self.identity = identity
        """The mark that a later one at the same address has not."""
        self.waits = waits


DEMAND: Final = FunctionDemand
ACQUISITION: Final = Origin
