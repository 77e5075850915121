"""Mediated devices that a VM asks for, and those that were made."""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import Acquisition, Demand, process, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Final, Self

    from kvmhooks.isolate.system.process_stat import Process


class MdevDemand(Demand):
    """A mediated device that has to be there."""

    __slots__ = ("parent", "type", "uuid")

    KIND = "mdevs"
    FIELDS: ClassVar = {"uuid": word, "parent": word, "type": word}

    def __init__(self, uuid: str, parent: str, type: str) -> None:  # noqa: A002 -- the kernel's word
        self.uuid = uuid
        self.parent = parent
        """The address of the device that it is a part of."""
        self.type = type
        """Its type, such as ``nvidia-35``."""

    @property
    def key(self) -> str:
        """Its UUID."""
        return self.uuid

    @classmethod
    def of_setting(cls, text: str) -> tuple[Self, ...]:
        """Return the demands in ``UUID=0000:3b:00.0/nvidia-35,…``. Raises ``ValueError``."""
        parts = (mdev.partition("=") for mdev in text.split(",") if mdev)
        return tuple(cls(uuid, *where.split("/", 1)) for uuid, _, where in parts)

    def to_setting(self) -> str:
        """Return its part of that."""
        return f"{self.uuid}={self.parent}/{self.type}"


class Mediated(Acquisition):
    """A mediated device that we made, or are about to make."""

    __slots__ = ("parent", "type")

    KIND = "mdevs"
    FIELDS: ClassVar = {"parent": str, "type": str, "waits": process}

    def __init__(self, parent: str, type: str, *, waits: Process | None = None) -> None:  # noqa: A002 -- as above
        self.parent = parent
        self.type = type
        self.waits = waits


DEMAND: Final = MdevDemand
ACQUISITION: Final = Mediated
