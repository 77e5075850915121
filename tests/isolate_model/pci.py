"""A model of the kernel's binding of PCI devices to drivers, as sysfs shows it.

Documentation/ABI/testing/sysfs-bus-pci, drivers/base/bus.c (``bind_store()``, ``unbind_store()``,
``bus_rescan_devices_helper()``) and drivers/pci/pci-driver.c (``pci_match_device()``,
``pci_device_can_probe()``). A device with an override is taken by the driver of that name alone,
whether its table names the device or not.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

BUS = "sys/bus/pci"
WRITE_ONLY = {"bind", "unbind", "drivers_probe"}
HOSTDEV = (
    "<devices><hostdev mode='subsystem' type='pci' managed='yes'><source>"
    "<address domain='0x0000' bus='0x01' slot='0x10' function='0x0'/></source></hostdev></devices>"
)
"""0000:01:10.0, in a domain."""


@dataclass
class Function:
    """One function of a device."""

    group: int | None
    driver: str = ""
    matches: tuple[str, ...] = ()
    """The drivers whose tables name it, in the order in which the bus asks them."""
    override: str = ""
    class_: str = "0x020000"
    serial: int = 0
    hangs: set[str] = field(default_factory=set)
    """The drivers that do not return from letting go of it."""
    refuses: set[str] = field(default_factory=set)
    """The drivers whose probe fails."""
    total: int | None = None
    """The number of virtual functions that it may have, if it may have any."""
    probes: bool = True
    """``sriov_drivers_autoprobe``."""
    makes: int | None = None
    """The number of virtual functions that its driver makes at the most."""
    vfs: list[str] = field(default_factory=list)
    physical: Function | None = None
    card: str = ""
    """The address of the physical one."""
    irqs: tuple[int, ...] = ()
    """Its message-signalled interrupts."""
    settings: dict[str, str] = field(
        default_factory=lambda: {
            "mac": "00:00:00:00:00:00", "vlan": "0", "trust": "no", "spoofchk": "yes", "rate": "0",
        }
    )  # fmt: skip
    """The settings that the card has for this virtual function."""
    nets: dict[str, str] = field(default_factory=dict)
    """The flags of its network interfaces, by name."""


class HangingError(Exception):
    """A write that does not return."""


class Pci:
    """All functions, and the drivers that are loaded."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}
        self.drivers = {"vfio-pci", "e1000e", "nvme", "snd_hda_intel", "iavf"}
        self.serial = 0

    def plug(self, address: str, function: Function) -> Function:
        """A device is there from now on, and is another one than any before."""
        self.serial += 1
        function.serial = self.serial
        self.functions[address] = function
        return function

    def state(self) -> dict[str, tuple[str, str]]:
        """The driver and the override of each."""
        return {at: (function.driver, function.override) for at, function in self.functions.items()}

    # --- what is read ---------------------------------------------------------------------------

    def read(self, path: str) -> str:
        """The text of a file; raises as the kernel does."""
        what, *rest = path.removeprefix(f"{BUS}/").split("/")
        if what == "drivers_probe" or (rest[-1:] and rest[-1] in WRITE_ONLY):
            raise OSError(errno.EIO, "a file that is written only", path)
        if what == "devices" and rest and rest[0] in self.functions:
            function = self.functions[rest[0]]
            texts = {"class": function.class_, "driver_override": function.override or "(null)"}
            if function.total is not None:
                texts |= {
                    "sriov_totalvfs": str(function.total), "sriov_numvfs": str(len(function.vfs)),
                    "sriov_drivers_autoprobe": str(int(function.probes)),
                }  # fmt: skip
            if rest[1:2] == ["net"] and rest[3:] == ["flags"] and rest[2] in function.nets:
                return function.nets[rest[2]]
            if rest[1:] and rest[1] in texts:
                return texts[rest[1]]
            if not rest[1:] or (rest[1:] == ["iommu_group"] and function.group is not None):
                raise IsADirectoryError(errno.EISDIR, "a directory", path)
        if what == "drivers" and rest and rest[0] in self.drivers:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        raise FileNotFoundError(errno.ENOENT, "no such file", path)

    def has(self, path: str) -> bool:
        """Return whether there is something of this name."""
        try:
            self.read(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def link(self, path: str) -> str:
        """Return the target of a link; empty where there is none."""
        _, address, name = path.removeprefix(f"{BUS}/").split("/")
        function = self.functions.get(address)
        if function is None:
            return ""
        if name == "driver" and function.driver:
            return f"../../../bus/pci/drivers/{function.driver}"
        if name == "iommu_group" and function.group is not None:
            return f"../../../kernel/iommu_groups/{function.group}"
        if name == "physfn" and function.card:
            return f"../{function.card}"
        if name in self.names(f"{BUS}/devices/{address}"):
            return f"../{function.vfs[int(name.removeprefix('virtfn'))]}"
        return ""

    def names(self, path: str) -> list[str]:
        """Return the names in a directory."""
        parts = path.removeprefix(f"{BUS}/devices/").split("/")
        function = self.functions.get(parts[0])
        if function is not None and parts[1:] == ["msi_irqs"]:
            return sorted(map(str, function.irqs))
        if function is not None and parts[1:] == ["net"]:
            return sorted(function.nets)
        if function is None or parts[1:] not in ([], ["iommu_group", "devices"]):
            return []
        if not parts[1:]:
            return [f"virtfn{at}" for at in range(len(function.vfs))]
        return sorted(at for at, each in self.functions.items() if each.group == function.group)

    def inodes(self) -> dict[str, int]:
        """The number of each device's link, never given out twice."""
        return {at: function.serial for at, function in self.functions.items()}

    def told(self, pf: str) -> str:
        """Return the output of `kvmhooks vfs` for a card."""
        vfs = [self.functions[vf].settings for vf in self.functions[pf].vfs]
        return "\n".join(
            " ".join([str(at), *(f"{name}={text}" for name, text in settings.items())])
            for at, settings in enumerate(vfs)
        )

    def set_function(self, pf: str, number: int, words: list[str]) -> None:
        """Set a virtual function as `kvmhooks vfs` does with NAME=VALUE."""
        vf = self.functions[self.functions[pf].vfs[number]]
        vf.settings |= dict(word.split("=", 1) for word in words)

    # --- what is written ------------------------------------------------------------------------

    def write(self, path: str, text: str) -> None:
        """Write as the kernel; raises ``OSError``, or ``HangingError`` where it never returns."""
        what, *rest = path.removeprefix(f"{BUS}/").split("/")
        if what == "devices" and rest[1] == "sriov_numvfs":
            self._resize(rest[0], int(text))
        elif what == "devices" and rest[1] == "sriov_drivers_autoprobe":
            self._function(rest[0]).probes = text == "1"
        elif what == "devices":
            self._function(rest[0]).override = text
        elif what == "drivers_probe":
            self._probe(self._function(text))
        elif rest[0] not in self.drivers:
            raise FileNotFoundError(errno.ENOENT, "no such driver", path)
        elif rest[1] == "unbind":
            self._unbind(self._function(text), rest[0])
        else:
            self._bind(self._function(text), rest[0])

    def _function(self, address: str) -> Function:
        if address not in self.functions:
            raise OSError(errno.ENODEV, "no such device", address)
        return self.functions[address]

    def _resize(self, address: str, count: int) -> None:
        """``sriov_numvfs_store()``; a driver of the host takes what is new, if it may."""
        card = self._function(address)
        if count > (card.total or 0):
            raise OSError(errno.ERANGE, "too many", address)
        if count == len(card.vfs):
            return
        if count and card.vfs:
            raise OSError(errno.EBUSY, "disable before enabling", address)
        if not card.driver:
            raise OSError(errno.ENOENT, "no driver bound to device", address)
        if "sriov" in card.hangs:
            raise HangingError
        for old in card.vfs:
            del self.functions[old]
        count = count if card.makes is None else min(count, card.makes)
        card.vfs = [f"{address[:-4]}{16 + at >> 3:02x}.{at % 8}" for at in range(count)]
        for at, name in enumerate(card.vfs):
            function = Function(
                100 + 32 * self.serial + at, matches=("iavf",), physical=card, card=address
            )
            self._probe(self.plug(name, function))

    def _may_probe(self, function: Function) -> bool:
        """``pci_device_can_probe()``."""
        return function.physical is None or function.physical.probes or bool(function.override)

    def _unbind(self, function: Function, driver: str) -> None:
        if function.driver != driver:
            raise OSError(errno.ENODEV, "not its driver", driver)
        if driver in function.hangs:
            raise HangingError
        function.driver = ""

    def _bind(self, function: Function, driver: str) -> None:
        if function.driver:
            raise OSError(errno.EBUSY, "it has a driver", driver)
        named = [function.override] if function.override else function.matches
        if driver not in named or not self._may_probe(function):
            raise OSError(errno.ENODEV, "no match", driver)
        if driver in function.refuses:
            raise OSError(errno.EIO, "the probe failed", driver)
        function.driver = driver

    def _probe(self, function: Function) -> None:
        for driver in [function.override] if function.override else function.matches:
            if (
                not function.driver
                and self._may_probe(function)
                and driver in self.drivers
                and driver not in function.refuses
            ):
                function.driver = driver
