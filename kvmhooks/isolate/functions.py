"""PCI functions: from the driver that the host has for them to ``vfio-pci``, and back.

``driver_override``, ``unbind`` and ``drivers_probe`` are those of Documentation/ABI/testing/
sysfs-bus-pci. A driver whose name the override says is the only one that may take a device, and
takes it although ``sriov_drivers_autoprobe`` is 0 (``pci_device_can_probe()``,
drivers/pci/pci-driver.c); with its name there, the original driver always takes it back. The
kernel keeps all this from other writers with the device's lock, so behind an unbind that hangs
every write hangs: each is made by a child that is waited for with a bound.

What a function had is on record before the first write. A function on record that no claim binds is
owed to the host; whoever holds ``LOCK`` gives it back, or the next one does.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.children import StuckError
from kvmhooks.isolate.configuration import HOST
from kvmhooks.isolate.pool import held_by
from kvmhooks.isolate.report import APPLIED, FAILED
from kvmhooks.isolate.state import RUNNING, Origin, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.report import Report
    from kvmhooks.isolate.state import Held, State
    from kvmhooks.isolate.store import Store

    Entry = Callable[[], AbstractContextManager[State]]

LOCK: Final = "devices.lock"
"""Held by whoever changes a driver, which may take seconds. Who holds the record's lock never waits
for this one."""

DRIVER: Final = "vfio-pci"
PATIENCE: Final = 8.0
"""Seconds for one write: a driver may have to wait for its hardware."""

BUS: Final = "sys/bus/pci"
DEVICES: Final = f"{BUS}/devices"
_NONE: Final = "(null)"
"""How ``driver_override`` says that it is not set (``%s`` of a null pointer)."""
_BRIDGE: Final = "0x06"
_WAITING: Final = frozenset({"", DRIVER, "pci-stub"})
"""Drivers with which a group may be given to a VM (Documentation/driver-api/vfio.rst)."""

_OF_BRIDGES: Final = _WAITING | {"pcieport"}
"""Those that a bridge in the group may have: ``driver_managed_dma`` (linux/pci.h)."""

_BRIDGES_SINCE: Final = (5, 19)
"""The first kernel that looks at the drivers of bridges (``iommu_group_claim_dma_owner()``)."""


def check_groups(door: Door, claim: Claim, state: State) -> None:
    """Each function is there, nobody else's, and nothing of the host remains in its IOMMU group.

    Raises ``IsolationError`` with all that is in the way.
    """
    owners = {
        address: one.claim.name
        for key, one in state.held.items()
        if key != claim.key
        for address in (*one.claim.devices, *one.claim.bound)
    }
    for address in claim.bound:
        at = f"{claim.name}: {address}"
        if not door.has(f"{DEVICES}/{address}"):
            raise IsolationError(f"{at}: found no such device, expected one of `kvmhooks devices`")
        if address in owners:
            raise IsolationError(f"{at}: it is {owners[address]}'s: stop that, or choose another")
        if not door.has(f"{DEVICES}/{address}/iommu_group"):
            raise IsolationError(
                f"{at}: it is in no IOMMU group: nothing would keep the VM from all of the host's "
                "memory: switch the IOMMU on (firmware, intel_iommu=on)"
            )
        others = [*_others(door, claim, address, owners)]
        if others:
            group = door.link(f"{DEVICES}/{address}/iommu_group").rpartition("/")[2]
            raise IsolationError(
                f"{at}: IOMMU group {group} goes whole, and in it {', '.join(others)}: give the VM "
                "these as well, or unbind them"
            )


def _others(door: Door, claim: Claim, address: str, owners: dict[str, str]) -> list[str]:
    """What else is in a function's group and would be in use beside the VM."""
    found = []
    is_strict = door.kernel() >= _BRIDGES_SINCE
    for other in door.names(f"{DEVICES}/{address}/iommu_group/devices"):
        driver = driver_of(door, other)
        is_bridge = _read(door, other, "class").startswith(_BRIDGE)
        if is_bridge and is_strict and driver not in _OF_BRIDGES:
            found.append(f"{other} is a bridge with {driver}, which has to let go of it")
        if is_bridge or other in claim.bound or other in claim.devices:
            continue
        if other in owners:
            found.append(f"{other} is {owners[other]}'s")
        elif driver not in _WAITING:
            found.append(f"{other} is {driver}'s")
    return found


def take(door: Door, store: Store, entry: Entry, key: str, until: float) -> None:
    """Bind the functions of a claim that is held to ``vfio-pci``, under ``LOCK``.

    ``entry`` opens the record. Raises ``IsolationError`` or ``OSError`` at the first that cannot be
    had; ``settle`` then gives back those that were.
    """
    with entry() as state:
        held = held_by(state, key)
        check_groups(door, held.claim, state)
        wanted = [one for one in held.claim.bound if _note(door, state, held.claim, one)]
        store.save(state.to_text())
    if wanted and not door.has(f"{BUS}/drivers/{DRIVER}"):
        door.load(DRIVER, PATIENCE)
    for address in wanted:
        try:
            _bind(door, address, min(PATIENCE, left(door, until)))
        except StuckError as error:
            with entry() as state:
                state.functions[address].waits = Process.find(door, error.pid)
                store.save(state.to_text())
            raise IsolationError(
                f"{held.claim.name}: {address}: its driver does not let go of it: {error}: it is "
                "given back once it does; the kernel's log may say what it waits for"
            ) from error
        except (IsolationError, OSError) as error:
            raise IsolationError(f"{held.claim.name}: {address}: {error}") from error


def left(door: Door, until: float) -> float:
    """The seconds that devices may still take. Raises ``IsolationError`` where there are none."""
    seconds = until - door.now()
    if seconds <= 0:
        raise IsolationError(
            "found no time left for it, expected some: give a start with devices more than it has "
            f"(budget_devices of [host] in /{HOST})"
        )
    return seconds


def _note(door: Door, state: State, claim: Claim, address: str) -> bool:
    """Put on record what a function has; False where it waits for a VM already."""
    identity = identity_of(door, address)
    origin = state.functions.get(address)
    if origin is not None and origin.identity == identity:
        if origin.waits is not None and origin.waits.is_alive(door):
            raise IsolationError(
                f"{claim.name}: {address}: process {origin.waits.pid} still has it: wait for it"
            )
        return True
    driver = driver_of(door, address)
    if driver == DRIVER:
        state.functions.pop(address, None)
        return False
    state.functions[address] = Origin(driver, _override_of(door, address), identity=identity)
    return True


def _bind(door: Door, address: str, seconds: float) -> None:
    """Hand a function to ``vfio-pci``; a step that was taken already is not taken again."""
    driver = driver_of(door, address)
    if driver == DRIVER:
        return
    _write(door, address, "driver_override", DRIVER, seconds)
    if driver:
        _write_bus(door, f"drivers/{driver}/unbind", address, seconds)
    why = ""
    try:
        _write_bus(door, "drivers_probe", address, seconds)
    except OSError as error:  # it says why the driver did not want it
        why = f" ({error.strerror})"
    if driver_of(door, address) != DRIVER:
        is_loaded = door.has(f"{BUS}/drivers/{DRIVER}")
        said = "did not take it" if is_loaded else "is not there: run `modprobe vfio-pci`"
        raise IsolationError(f"{DRIVER} {said}{why}: the kernel's log says more")


def owe(state: State, held: Held) -> None:
    """Note that a claim's functions are the host's again; not before a QEMU has ended."""
    for address in held.claim.bound:
        origin = state.functions.get(address)
        if origin is not None and held.state == RUNNING:
            origin.waits = held.holder


def settle(door: Door, store: Store, entry: Entry, report: Report) -> None:
    """Give back every function that is owed, under ``LOCK``; ``report`` tells what came of each."""
    with entry() as state:
        todo = {address: state.functions[address] for address in state.owed("functions")}
    done: list[str] = []
    stuck: dict[str, Process | None] = {}
    for address, origin in todo.items():
        try:
            if origin.waits is not None and origin.waits.is_alive(door):
                raise IsolationError(f"process {origin.waits.pid} still has it")  # noqa: TRY301
            if origin.identity == identity_of(door, address):  # else it was unplugged
                _give_back(door, address, origin)
                report.add(f"pci/{address}", APPLIED, origin.driver)
            done.append(address)
        except StuckError as error:
            stuck[address] = Process.find(door, error.pid)
            report.add(f"pci/{address}", FAILED, origin.driver, str(error))
        except (IsolationError, OSError) as error:
            report.add(f"pci/{address}", FAILED, origin.driver, str(error))
    conclude(store, entry, "functions", done, stuck)


def conclude(
    store: Store, entry: Entry, table: str, done: list[str], stuck: dict[str, Process | None]
) -> None:
    """Forget what was given back, and note which processes the rest has to wait for.

    ``table`` is the name of one of the record's: ``functions``, ``vfs``, ``mdevs``.
    """
    if not done and not stuck:
        return
    with entry() as state:
        records = getattr(state, table)
        for key in done:
            records.pop(key, None)
        for key, process in stuck.items():
            records[key].waits = process
        if state.is_empty:
            store.clear()
        else:
            store.save(state.to_text())


def _give_back(door: Door, address: str, origin: Origin) -> None:
    """Give a function its driver and its override again, but what others have put there stays.

    Each step leaves what the next call can go on from. Raises ``IsolationError``, ``StuckError`` or
    ``OSError``.
    """
    driver = driver_of(door, address)
    is_ours = _override_of(door, address) in {DRIVER, origin.driver} - {""}
    if origin.driver and is_ours and driver in {DRIVER, ""}:
        _override(door, address, origin.driver)
    if driver == DRIVER:
        _write_bus(door, f"drivers/{DRIVER}/unbind", address, PATIENCE)
        driver = ""
    why = ""
    if origin.driver and not driver:
        try:
            _write_bus(door, f"drivers/{origin.driver}/bind", address, PATIENCE)
        except OSError as error:  # its module was unloaded, or it does not want it any more
            why = f" ({error.strerror})"
    if is_ours:
        _override(door, address, origin.override)
    if origin.driver and not driver_of(door, address):
        raise IsolationError(
            f"{origin.driver} did not take it back{why}: see the kernel's log, and run "
            f"`modprobe {origin.driver}` if it is not loaded any more"
        )


def _override(door: Door, address: str, name: str) -> None:
    if _override_of(door, address) != name:
        _write(door, address, "driver_override", name, PATIENCE)


def driver_of(door: Door, address: str) -> str:
    """The driver that a function is bound to; empty for none."""
    return door.link(f"{DEVICES}/{address}/driver").rpartition("/")[2]


def _override_of(door: Door, address: str) -> str:
    said = _read(door, address, "driver_override")
    return "" if said == _NONE else said


def identity_of(door: Door, address: str) -> str:
    """What tells a device from a later one at the same address: kernfs gives each link a number."""
    return str(door.inodes(DEVICES).get(address, ""))


def _read(door: Door, address: str, name: str) -> str:
    try:
        return door.read(f"{DEVICES}/{address}/{name}")
    except OSError:
        return ""


def _write(door: Door, address: str, name: str, text: str, seconds: float) -> None:
    door.write_within(seconds, f"{DEVICES}/{address}/{name}", text)


def _write_bus(door: Door, path: str, address: str, seconds: float) -> None:
    door.write_within(seconds, f"{BUS}/{path}", address)
