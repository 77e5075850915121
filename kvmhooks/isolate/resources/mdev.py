"""Mediated devices: made for a VM before it starts, and removed after it has ended.

``mdev_supported_types/TYPE/create`` of the parent, its ``available_instances``, and ``remove`` of
the device are those of Documentation/driver-api/vfio-mediated-device.rst. A device that is there
already is taken as it is, and stays. A device of ours is on record before it is made.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.kinds.mdevs import MdevDemand, Mediated
from kvmhooks.isolate.resources.resource import PATIENCE, Devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.resources.foreseen import ForeseenMdevs
    from kvmhooks.isolate.resources.resource import Access, Means
    from kvmhooks.isolate.system.processes import StuckError
    from kvmhooks.isolate.system.system import System

DEVICES: Final = "sys/bus/mdev/devices"
PARENTS: Final = "sys/class/mdev_bus"
_NONE: Final = "not there"


class MediatedDevices(Devices):
    """Mediated devices that have to be there."""

    KIND = Mediated.KIND
    LABEL = "mdev"
    GONE = ""
    IS_QEMUS = True

    def note(self, system: System, state: State, demand: MdevDemand, seen: None) -> bool:
        """Put on record that a device is about to be made; False where it is there."""
        del seen
        parent, kind = demand.parent, demand.type
        there = kind_of(system, demand.uuid)
        if there:
            place = _parent_of(system, demand.uuid)
            if (there, place) != (kind, parent):
                raise IsolationError(
                    f"found it there, a {there} of {place}, expected a {kind} of {parent}"
                )
            return False
        known = state.acquired(Mediated).get(demand.uuid)
        if known is not None:
            self.check_waits(system, known, ": wait for it")
        free = available(system, parent, kind)
        if free is None:
            kinds = ", ".join(system.names(f"{PARENTS}/{parent}/mdev_supported_types"))
            raise IsolationError(
                f"{parent}: found no mediated devices of type {kind}, expected one of "
                f"{kinds or 'a card that has such'}"
            )
        needed = 1 + self._count_promised(system, state, demand)
        if free < needed:
            raise IsolationError(
                f"found available_instances {free} at /{_kind(parent, kind)}, expected {needed} or "
                "more"
            )
        state.acquired(Mediated)[demand.uuid] = Mediated(parent, kind)
        return True

    def _count_promised(self, system: System, state: State, demand: MdevDemand) -> int:
        """Return how many more of the same are noted for its claim, and are yet to be made."""
        noted = state.acquired(Mediated)
        every = (held.claim.of(MdevDemand) for held in state.held.values())
        return sum(
            other.uuid in noted and not kind_of(system, other.uuid)
            for several in every
            if demand in several
            for other in several
            if other != demand and (other.parent, other.type) == (demand.parent, demand.type)
        )

    def make(self, means: Means, demand: MdevDemand, seen: None) -> None:
        """Make a device. Raises as ``Devices.make``."""
        del seen
        parent, kind = demand.parent, demand.type
        try:
            create = f"{_kind(parent, kind)}/create"
            means.system.write_within(means.seconds(), create, demand.uuid)
        except OSError as error:
            raise IsolationError(f"{parent} did not make a {kind}: {words_of(error)}") from error
        if kind_of(means.system, demand.uuid) != kind:
            raise IsolationError(f"{parent} made none: the kernel's log may say why")

    def place(self, key: str) -> str:
        """Return the device."""
        return f"/{DEVICES}/{key}"

    def see(
        self, access: Access, key: str, found: Mediated, demand: MdevDemand | None
    ) -> tuple[str, str, str]:
        """Return types and parents."""
        system, kind = access.system, kind_of(access.system, key)
        ours = f"{found.type} of {found.parent}"
        now = f"{kind} of {_parent_of(system, key)}" if kind else _NONE
        return _NONE, _NONE if demand is None else ours, now

    def stuck(self, demand: MdevDemand, error: StuckError) -> str:
        """Return the words for a parent that does not answer."""
        return f"{demand.parent} does not make it: {error}"

    def give_back(self, means: Means, key: str, found: Mediated) -> str:
        """Remove a device, if it is the one that we made."""
        if (kind_of(means.system, key), _parent_of(means.system, key)) == (
            found.type,
            found.parent,
        ):
            means.system.write_within(PATIENCE, f"{DEVICES}/{key}/remove", "1")
        return ""

    def describe(self, found: Mediated) -> str:
        """Return its type."""
        return found.type

    def foresee(self, system: System) -> ForeseenMdevs:
        """Return the devices as a rehearsal takes them."""
        from kvmhooks.isolate.resources.foreseen import ForeseenMdevs  # noqa: PLC0415 -- none is a VM's start

        return ForeseenMdevs(system)


RESOURCE: Final = MediatedDevices()


def kind_of(system: System, uuid: str) -> str:
    """Return the type of a mediated device; empty where there is none."""
    return system.link(f"{DEVICES}/{uuid}/mdev_type").rpartition("/")[2]


def available(system: System, parent: str, kind: str) -> int | None:
    """Return how many more a parent can make of a type; None for what it does not make at all."""
    try:
        return int(system.read(f"{_kind(parent, kind)}/available_instances"))
    except (OSError, ValueError):
        return None


def _parent_of(system: System, uuid: str) -> str:
    """Return its parent: ``../../../devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/UUID``."""
    return system.link(f"{DEVICES}/{uuid}").rpartition("/")[0].rpartition("/")[2]


def _kind(parent: str, kind: str) -> str:
    return f"{PARENTS}/{parent}/mdev_supported_types/{kind}"
