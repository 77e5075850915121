"""Mediated devices: made for a VM before it starts, and removed after it has ended.

``mdev_supported_types/TYPE/create`` of the parent, its ``available_instances``, and ``remove`` of
the device are those of Documentation/driver-api/vfio-mediated-device.rst. A device that is there
already is taken as it is, and stays. What we made is on record before it is made.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.children import StuckError
from kvmhooks.isolate.functions import PATIENCE, conclude, left
from kvmhooks.isolate.report import APPLIED, FAILED
from kvmhooks.isolate.state import RUNNING, Mediated, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.functions import Entry
    from kvmhooks.isolate.report import Report
    from kvmhooks.isolate.state import Held, State
    from kvmhooks.isolate.store import Store

DEVICES: Final = "sys/bus/mdev/devices"
PARENTS: Final = "sys/class/mdev_bus"


def take(door: Door, store: Store, entry: Entry, claim: Claim, until: float) -> None:
    """See that each mediated device that a claim asks for is there.

    Raises ``IsolationError``; ``settle`` then removes what was made.
    """
    with entry() as state:
        todo = [one for one in claim.mdevs if _note(door, state, claim, *one)]
        store.save(state.to_text())
    for uuid, parent, kind in todo:
        at = f"{claim.name}: {uuid}"
        try:
            create = f"{_kind(parent, kind)}/create"
            door.write_within(min(PATIENCE, left(door, until)), create, uuid)
        except StuckError as error:
            with entry() as state:
                state.mdevs[uuid].waits = Process.find(door, error.pid)
                store.save(state.to_text())
            raise IsolationError(f"{at}: {parent} does not make it: {error}") from error
        except (IsolationError, OSError) as error:
            raise IsolationError(f"{at}: {parent} did not make a {kind}: {error}") from error
        if kind_of(door, uuid) != kind:
            raise IsolationError(f"{at}: {parent} made none: the kernel's log may say why")


def _note(door: Door, state: State, claim: Claim, uuid: str, parent: str, kind: str) -> bool:
    """Put on record that a device is about to be made; False where it is there."""
    at = f"{claim.name}: {uuid}"
    there = kind_of(door, uuid)
    if there:
        place = _parent_of(door, uuid)
        if (there, place) != (kind, parent):
            raise IsolationError(
                f"{at}: found it there, a {there} of {place}, expected a {kind} of {parent}"
            )
        return False
    known = state.mdevs.get(uuid)
    if known is not None and known.waits is not None and known.waits.is_alive(door):
        raise IsolationError(f"{at}: process {known.waits.pid} still waits for its parent")
    free = available(door, parent, kind)
    if free is None:
        kinds = ", ".join(door.names(f"{PARENTS}/{parent}/mdev_supported_types"))
        raise IsolationError(
            f"{at}: {parent}: found no mediated devices of type {kind}, expected one of "
            f"{kinds or 'a card that has such'}"
        )
    if free == 0:
        raise IsolationError(
            f"{at}: found available_instances 0 at /{_kind(parent, kind)}, expected 1 or more"
        )
    state.mdevs[uuid] = Mediated(parent, kind)
    return True


def owe(state: State, held: Held) -> None:
    """Note that a claim's devices are the host's to remove; not before a QEMU has ended."""
    for uuid, _, _ in held.claim.mdevs:
        made = state.mdevs.get(uuid)
        if made is not None and held.state == RUNNING:
            made.waits = held.holder


def settle(door: Door, store: Store, entry: Entry, report: Report) -> None:
    """Remove every device of ours that is owed; ``report`` tells what came of each."""
    with entry() as state:
        todo = {uuid: state.mdevs[uuid] for uuid in state.owed("mdevs")}
    done: list[str] = []
    stuck: dict[str, Process | None] = {}
    for uuid, made in todo.items():
        try:
            _remove(door, uuid, made)
        except StuckError as error:
            stuck[uuid] = Process.find(door, error.pid)
            report.add(f"mdev/{uuid}", FAILED, made.kind, str(error))
        except (IsolationError, OSError) as error:
            report.add(f"mdev/{uuid}", FAILED, made.kind, str(error))
        else:
            report.add(f"mdev/{uuid}", APPLIED, "")
            done.append(uuid)
    conclude(store, entry, "mdevs", done, stuck)


def _remove(door: Door, uuid: str, made: Mediated) -> None:
    if made.waits is not None and made.waits.is_alive(door):
        raise IsolationError(f"process {made.waits.pid} still has it")
    if (kind_of(door, uuid), _parent_of(door, uuid)) == (made.kind, made.parent):
        door.write_within(PATIENCE, f"{DEVICES}/{uuid}/remove", "1")


def kind_of(door: Door, uuid: str) -> str:
    """The type of a mediated device; empty where there is none."""
    return door.link(f"{DEVICES}/{uuid}/mdev_type").rpartition("/")[2]


def available(door: Door, parent: str, kind: str) -> int | None:
    """How many more a parent can make of a type; None for what it does not make at all."""
    try:
        return int(door.read(f"{_kind(parent, kind)}/available_instances"))
    except (OSError, ValueError):
        return None


def _parent_of(door: Door, uuid: str) -> str:
    """Below which device it is: ``../../../devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/UUID``."""
    return door.link(f"{DEVICES}/{uuid}").rpartition("/")[0].rpartition("/")[2]


def _kind(parent: str, kind: str) -> str:
    return f"{PARENTS}/{parent}/mdev_supported_types/{kind}"
