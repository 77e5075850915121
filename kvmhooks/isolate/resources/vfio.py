"""PCI functions: from the driver that the host has for them to ``vfio-pci``, and back.

``driver_override``, ``unbind`` and ``drivers_probe`` are those of Documentation/ABI/testing/
sysfs-bus-pci. A driver whose name the override says is the only one that may take a device, and
takes it although ``sriov_drivers_autoprobe`` is 0 (``pci_device_can_probe()``,
drivers/pci/pci-driver.c); with its name there, the original driver always takes it back. The
kernel keeps all this from other writers with the device's lock, so behind an unbind that hangs
every write hangs: each is made by a child that is waited for with a bound.

A function's state is on record before the first write.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand, Origin
from kvmhooks.isolate.resources.resource import PATIENCE, Devices, owners_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.resources.foreseen import ForeseenDrivers
    from kvmhooks.isolate.resources.resource import Access, Means
    from kvmhooks.isolate.system.processes import StuckError
    from kvmhooks.isolate.system.system import System

DRIVER: Final = "vfio-pci"
BUS: Final = "sys/bus/pci"
DEVICES: Final = f"{BUS}/devices"
_NONE: Final = "(null)"
"""The text of a ``driver_override`` that is not set (``%s`` of a null pointer)."""
_NO_DRIVER: Final = "no driver"
_BRIDGE: Final = "0x06"
_WAITING: Final = frozenset({"", DRIVER, "pci-stub"})
"""Drivers with which a group may be given to a VM (Documentation/driver-api/vfio.rst)."""

_OF_BRIDGES: Final = _WAITING | {"pcieport"}
"""Those that a bridge in the group may have: ``driver_managed_dma`` (linux/pci.h)."""

_BRIDGES_SINCE: Final = (5, 19)
"""The first kernel that looks at the drivers of bridges (``iommu_group_claim_dma_owner()``)."""


class BoundFunctions(Devices):
    """PCI functions that have to be bound to ``vfio-pci``."""

    KIND = Origin.KIND
    LABEL = "pci"
    IS_QEMUS = True

    def check(self, system: System, claim: Claim) -> None:
        """Refuse functions that the host uses. Raises ``IsolationError``."""
        from kvmhooks.isolate.resources import host_uses  # noqa: PLC0415 -- it needs ``driver_of``

        host_uses.check(system, claim)

    def check_there(self, system: System, claim: Claim, state: State) -> None:
        """Refuse a function that is absent, or whose IOMMU group is still in use.

        Raises ``IsolationError`` with all that is in the way.
        """
        owners = owners_of(system, claim, state)
        for address in claim.asks_of(self.KIND):
            _check_group(system, claim, address, owners)

    def note(self, system: System, state: State, demand: FunctionDemand, seen: None) -> bool:
        """Put on record what a function has; False where it waits for a VM already."""
        del seen
        address = demand.address
        identity = identity_of(system, address)
        functions = state.acquired(Origin)
        origin = functions.get(address)
        driver, override = driver_of(system, address), _override_of(system, address)
        if origin is not None and origin.identity == identity:
            self.check_waits(system, origin, ": wait for it")
            if DRIVER in (driver, override) or origin.driver == override != "":
                return True  # as we leave it between our steps; else it is somebody's by now
        if driver == DRIVER:
            functions.pop(address, None)
            return False
        functions[address] = Origin(driver, override, identity=identity)
        return True

    def make(self, means: Means, demand: FunctionDemand, seen: None) -> None:
        """Hand a function to ``vfio-pci``; a step that was taken already is not taken again."""
        del seen
        system, address = means.system, demand.address
        if not system.has(f"{BUS}/drivers/{DRIVER}"):
            system.load(DRIVER, means.seconds())
        seconds = means.seconds()
        driver = driver_of(system, address)
        if driver == DRIVER:
            return
        _write(system, address, "driver_override", DRIVER, seconds)
        if driver:
            _write_bus(system, f"drivers/{driver}/unbind", address, seconds)
        why = ""
        try:
            _write_bus(system, "drivers_probe", address, seconds)
        except OSError as error:  # it says why the driver did not want it
            why = f" ({error.strerror})"
        if driver_of(system, address) != DRIVER:
            is_loaded = system.has(f"{BUS}/drivers/{DRIVER}")
            problem = "did not take it" if is_loaded else "is not there: run `modprobe vfio-pci`"
            raise IsolationError(f"{DRIVER} {problem}{why}: the kernel's log says more")

    def place(self, key: str) -> str:
        """Return the link to its driver."""
        return f"/{DEVICES}/{key}/driver"

    def see(
        self, access: Access, key: str, found: Origin, demand: FunctionDemand | None
    ) -> tuple[str, str, str] | None:
        """Return its drivers."""
        system, was = access.system, found.driver or _NO_DRIVER
        if found.identity != identity_of(system, key):
            return None
        return was, was if demand is None else DRIVER, driver_of(system, key) or _NO_DRIVER

    def stuck(self, demand: FunctionDemand, error: StuckError) -> str:
        """Return the words for a driver that hesitates."""
        del demand
        return (
            f"its driver does not let go of it: {error}: it is given back once it does; the "
            "kernel's log may say what it waits for"
        )

    def give_back(self, means: Means, key: str, found: Origin) -> str:
        """Give a function its driver and its override again, unless it was unplugged."""
        if found.identity == identity_of(means.system, key):
            _give_back(means.system, key, found)
        return ""

    def describe(self, found: Origin) -> str:
        """Return the driver that it had."""
        return found.driver

    def foresee(self, system: System) -> ForeseenDrivers:
        """Return the drivers of functions as a rehearsal takes them."""
        from kvmhooks.isolate.resources.foreseen import ForeseenDrivers  # noqa: PLC0415 -- none is a VM's start

        return ForeseenDrivers(system)


RESOURCE: Final = BoundFunctions()


def _check_group(system: System, claim: Claim, address: str, owners: Mapping[str, str]) -> None:
    at = f"{claim.name}: {address}"
    if not system.has(f"{DEVICES}/{address}"):
        raise IsolationError(f"{at}: found no such device, expected one of `kvmhooks devices`")
    if not system.has(f"{DEVICES}/{address}/iommu_group"):
        raise IsolationError(
            f"{at}: it is in no IOMMU group: nothing would keep the VM from all of the host's "
            "memory: switch the IOMMU on (firmware, intel_iommu=on)"
        )
    others = [*_others(system, claim, address, owners)]
    if others:
        group = system.link(f"{DEVICES}/{address}/iommu_group").rpartition("/")[2]
        raise IsolationError(
            f"{at}: IOMMU group {group} goes whole, and in it {', '.join(others)}: give the VM "
            "these as well, or unbind them"
        )


def _others(system: System, claim: Claim, address: str, owners: Mapping[str, str]) -> list[str]:
    """Return the others in a function's group that would be in use beside the VM."""
    found = []
    own = {*claim.asks_of(Origin.KIND), *claim.devices}
    is_strict = system.kernel() >= _BRIDGES_SINCE
    for other in system.names(f"{DEVICES}/{address}/iommu_group/devices"):
        driver = driver_of(system, other)
        is_bridge = _read(system, other, "class").startswith(_BRIDGE)
        if is_bridge and is_strict and driver not in _OF_BRIDGES:
            found.append(f"{other} is a bridge with {driver}, which has to let go of it")
        if is_bridge or other in own:
            continue
        if other in owners:
            found.append(f"{other} is {owners[other]}'s")
        elif driver not in _WAITING:
            found.append(f"{other} is {driver}'s")
    return found


def _give_back(system: System, address: str, origin: Origin) -> None:
    """Give a function its driver and its override again, but leave others' values there.

    Each step leaves what the next call can go on from. Raises ``IsolationError``, ``StuckError`` or
    ``OSError``.
    """
    driver = driver_of(system, address)
    is_ours = _override_of(system, address) in {DRIVER, origin.driver} - {""}
    if origin.driver and is_ours and driver in {DRIVER, ""}:
        _override(system, address, origin.driver)
    if driver == DRIVER:
        _write_bus(system, f"drivers/{DRIVER}/unbind", address, PATIENCE)
        driver = ""
    why = ""
    if origin.driver and not driver:
        try:
            _write_bus(system, f"drivers/{origin.driver}/bind", address, PATIENCE)
        except OSError as error:  # its module was unloaded, or it does not want it any more
            why = f" ({error.strerror})"
    if is_ours:
        _override(system, address, origin.override)
    if origin.driver and not driver_of(system, address):
        raise IsolationError(
            f"{origin.driver} did not take it back{why}: see the kernel's log, and run "
            f"`modprobe {origin.driver}` if it is not loaded any more"
        )


def _override(system: System, address: str, name: str) -> None:
    if _override_of(system, address) != name:
        _write(system, address, "driver_override", name, PATIENCE)


def driver_of(system: System, address: str) -> str:
    """Return the driver that a function is bound to; empty for none."""
    return system.link(f"{DEVICES}/{address}/driver").rpartition("/")[2]


def _override_of(system: System, address: str) -> str:
    override = _read(system, address, "driver_override")
    return "" if override == _NONE else override


def identity_of(system: System, address: str) -> str:
    """Return a mark that a later device there has not: kernfs gives each link a number."""
    return str(system.inodes(DEVICES).get(address, ""))


def _read(system: System, address: str, name: str) -> str:
    try:
        return system.read(f"{DEVICES}/{address}/{name}")
    except OSError:
        return ""


def _write(system: System, address: str, name: str, text: str, seconds: float) -> None:
    system.write_within(seconds, f"{DEVICES}/{address}/{name}", text)


def _write_bus(system: System, path: str, address: str, seconds: float) -> None:
    system.write_within(seconds, f"{BUS}/{path}", address)
