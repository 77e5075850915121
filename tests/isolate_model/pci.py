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
    """How many virtual functions it may have, if it may have any."""
    probes: bool = True
    """``sriov_drivers_autoprobe``."""
    makes: int | None = None
    """How many virtual functions its driver makes at the most."""
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
    """What the card lets this virtual function do."""
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
        return {at: (one.driver, one.override) for at, one in self.functions.items()}

    # --- what is read ---------------------------------------------------------------------------

    def read(self, path: str) -> str:
        """The text of a file; raises as the kernel does."""
        what, *rest = path.removeprefix(f"{BUS}/").split("/")
        if what == "drivers_probe" or (rest[-1:] and rest[-1] in WRITE_ONLY):
            raise OSError(errno.EIO, "a file that is written only", path)
        if what == "devices" and rest and rest[0] in self.functions:
            one = self.functions[rest[0]]
            texts = {"class": one.class_, "driver_override": one.override or "(null)"}
            if one.total is not None:
                texts |= {"sriov_totalvfs": str(one.total), "sriov_numvfs": str(len(one.vfs)),
                          "sriov_drivers_autoprobe": str(int(one.probes))}  # fmt: skip
            if rest[1:2] == ["net"] and rest[3:] == ["flags"] and rest[2] in one.nets:
                return one.nets[rest[2]]
            if rest[1:] and rest[1] in texts:
                return texts[rest[1]]
            if not rest[1:] or (rest[1:] == ["iommu_group"] and one.group is not None):
                raise IsADirectoryError(errno.EISDIR, "a directory", path)
        if what == "drivers" and rest and rest[0] in self.drivers:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        raise FileNotFoundError(errno.ENOENT, "no such file", path)

    def has(self, path: str) -> bool:
        """Whether there is something of this name."""
        try:
            self.read(path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def link(self, path: str) -> str:
        """What a link says; empty where there is none."""
        _, address, name = path.removeprefix(f"{BUS}/").split("/")
        one = self.functions.get(address)
        if one is None:
            return ""
        if name == "driver" and one.driver:
            return f"../../../bus/pci/drivers/{one.driver}"
        if name == "iommu_group" and one.group is not None:
            return f"../../../kernel/iommu_groups/{one.group}"
        if name == "physfn" and one.card:
            return f"../{one.card}"
        if name.startswith("virtfn"):
            return f"../{one.vfs[int(name.removeprefix('virtfn'))]}"
        return ""

    def names(self, path: str) -> list[str]:
        """What a directory holds."""
        parts = path.removeprefix(f"{BUS}/devices/").split("/")
        one = self.functions.get(parts[0])
        if one is not None and parts[1:] == ["msi_irqs"]:
            return sorted(map(str, one.irqs))
        if one is not None and parts[1:] == ["net"]:
            return sorted(one.nets)
        if one is None or parts[1:] not in ([], ["iommu_group", "devices"]):
            return []
        if not parts[1:]:
            return [f"virtfn{at}" for at in range(len(one.vfs))]
        return sorted(at for at, each in self.functions.items() if each.group == one.group)

    def inodes(self) -> dict[str, int]:
        """The number of each device's link, never given out twice."""
        return {at: one.serial for at, one in self.functions.items()}

    def told(self, pf: str) -> str:
        """What `kvmhooks functions` prints of a card."""
        vfs = [self.functions[one].settings for one in self.functions[pf].vfs]
        return "\n".join(
            " ".join([str(at), *(f"{name}={text}" for name, text in settings.items())])
            for at, settings in enumerate(vfs)
        )

    def set_function(self, pf: str, number: int, words: list[str]) -> None:
        """What it does with NAME=VALUE."""
        vf = self.functions[self.functions[pf].vfs[number]]
        vf.settings |= dict(word.split("=", 1) for word in words)

    # --- what is written ------------------------------------------------------------------------

    def write(self, path: str, text: str) -> None:
        """What the kernel does; raises ``OSError``, or ``HangingError`` where it never returns."""
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
        one = self._function(address)
        if count > (one.total or 0):
            raise OSError(errno.ERANGE, "too many", address)
        if count == len(one.vfs):
            return
        if count and one.vfs:
            raise OSError(errno.EBUSY, "disable before enabling", address)
        if not one.driver:
            raise OSError(errno.ENOENT, "no driver bound to device", address)
        if "sriov" in one.hangs:
            raise HangingError
        for old in one.vfs:
            del self.functions[old]
        count = count if one.makes is None else min(count, one.makes)
        one.vfs = [f"{address[:-4]}{16 + at >> 3:02x}.{at % 8}" for at in range(count)]
        for at, name in enumerate(one.vfs):
            function = Function(
                100 + 32 * self.serial + at, matches=("iavf",), physical=one, card=address
            )
            self._probe(self.plug(name, function))

    def _may_probe(self, one: Function) -> bool:
        """``pci_device_can_probe()``."""
        return one.physical is None or one.physical.probes or bool(one.override)

    def _unbind(self, one: Function, driver: str) -> None:
        if one.driver != driver:
            raise OSError(errno.ENODEV, "not its driver", driver)
        if driver in one.hangs:
            raise HangingError
        one.driver = ""

    def _bind(self, one: Function, driver: str) -> None:
        if one.driver:
            raise OSError(errno.EBUSY, "it has a driver", driver)
        named = [one.override] if one.override else one.matches
        if driver not in named or not self._may_probe(one):
            raise OSError(errno.ENODEV, "no match", driver)
        if driver in one.refuses:
            raise OSError(errno.EIO, "the probe failed", driver)
        one.driver = driver

    def _probe(self, one: Function) -> None:
        for driver in [one.override] if one.override else one.matches:
            if (
                not one.driver
                and self._may_probe(one)
                and driver in self.drivers
                and driver not in one.refuses
            ):
                one.driver = driver
