"""The host's losses with a PCI function: the last look before a driver is unbound.

``kvmhooks.devices`` tells a person the same, and more, and needs what the hook must not depend on:
a broken virtual environment must neither keep a VM from starting nor have this look left out. A
test holds both to one verdict. The files are those that the modules of that room name.
"""

from __future__ import annotations

import errno
import os

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.resources.vfio import DEVICES, DRIVER, driver_of
from kvmhooks.isolate.vm.cgroups import LIBVIRT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.system.system import System

    Use = tuple[str, str]
    """The kind of use (one of the values of ``devices.allow``), and its words with the evidence."""

_BLOCK: Final = "sys/block"
_NET: Final = "sys/class/net"
_MOUNTS: Final = "proc/self/mountinfo"
_SHOWN: Final = 3
"""Uses that are named in a message."""
_REMAPPING: Final = 1 << 3
"""Of a DMAR unit's extended capabilities (VT-d specification, «Extended Capability Register»)."""
_UNSAFE: Final = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
"""Without it, and without remapping, no group is taken (drivers/vfio/vfio_iommu_type1.c)."""
_REJECT: Final = 0x0200
"""``RTF_REJECT`` (linux/route.h): the kernel's own «no route»."""


def check(system: System, claim: Claim) -> None:
    """Refuse bound functions that the host uses, but for those that it may lose.

    Raises ``IsolationError`` with what it does, where that is said, and the switch.
    """
    for function in claim.of(FunctionDemand):
        address = function.address
        found = [use for use in uses_of(system, address) if use[0] not in function.allow]
        if found:
            more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            losses = "; ".join(what for _, what in found[:_SHOWN])
            reasons = sorted({reason for reason, _ in found})
            raise IsolationError(
                f"{claim.name}: {address}: {losses}{more}: give it another device, or say "
                f"{_switch(claim, reasons)}"
            )


def _switch(claim: Claim, reasons: list[str]) -> str:
    """Return the words that allow it in the VM's description.

    VFIO itself refuses devices that could send interrupts.
    """
    more = f", and write Y to /{_UNSAFE}" if "remapping" in reasons else ""
    return f"{_word(claim, reasons)}{more}"


def _word(claim: Claim, reasons: list[str]) -> str:
    if claim.driver == LIBVIRT:
        return f'devices.allow="{",".join(reasons)}"'
    return f"pci.allow = {reasons}".replace("'", '"')


def uses_of(system: System, address: str) -> Iterator[Use]:
    """Yield every use of a function that this host makes."""
    if driver_of(system, address) == DRIVER:
        return  # it was taken from the host by somebody else
    yield from _remapping(system)
    for name in _below(system, _BLOCK, address):
        yield from _disk_uses(system, _shown(name))
    routes = _Routes(system)
    for name in _below(system, _NET, address):
        yield from routes.uses_of(name)
    yield from _display_uses(system, address)
    yield from _functions_in_use(system, address, routes)


def _below(system: System, kind: str, address: str) -> list[str]:
    """Return the entries of a class that belong to a function."""
    return [name for name in system.names(kind) if f"/{address}/" in system.link(f"{kind}/{name}")]


def _remapping(system: System) -> Iterator[Use]:
    """Yield the lack of remapping: where no interrupt is remapped a VM could send the host any."""
    if "intremap=off" in " ".join(_lines(system, "proc/cmdline")).split():
        yield "remapping", "interrupts are not remapped: the VM could send any [/proc/cmdline]"
        return
    for unit in system.names("sys/class/iommu"):
        at = f"sys/class/iommu/{unit}/intel-iommu/ecap"
        try:
            has = int(system.read(at), 16) & _REMAPPING
        except (OSError, ValueError):  # another kind of IOMMU does not say
            continue
        if not has:
            yield "remapping", f"interrupts are not remapped: the VM could send any [/{at}]"
            return


# --- disks --------------------------------------------------------------------------------------


def _shown(name: str) -> str:
    """Return the name under which a hidden path of an NVMe namespace is used (``nvme0c1n1``)."""
    head, is_path, tail = name.partition("c")
    number, is_namespace, rest = tail.partition("n")
    if name.startswith("nvme") and is_path and is_namespace and number.isdecimal():
        return f"{head}n{rest}"
    return name


def _disk_uses(system: System, disk: str) -> Iterator[Use]:
    """Yield the uses of a disk, of its partitions and of all that stacks on them."""
    paths = [*dict.fromkeys(_stack(system, f"{_BLOCK}/{disk}"))]
    names = [path.rpartition("/")[2] for path in paths]
    for path, name in zip(paths, names, strict=True):
        holders = system.names(f"{path}/holders")
        if holders:
            yield "held", f"{name} carries {', '.join(holders)} [/{path}/holders]"
    yield from _mounts(system, paths)
    swapped = [_words(line)[0] for line in _lines(system, "proc/swaps")[1:] if _words(line)]
    for path in swapped:
        if _name_of(system, path) in names:
            yield "swap", f"{_name_of(system, path)} is swapped to [/proc/swaps]"
    if system.is_real:
        yield from _exclusive(names)


def _stack(system: System, path: str) -> Iterator[str]:
    """Yield the places of a disk, of its partitions, and of what holds any of them."""
    name = path.rpartition("/")[2]
    parts = [f"{path}/{part}" for part in system.names(path) if part.startswith(name)]
    for place in (path, *parts):
        yield place
        for holder in system.names(f"{place}/holders"):
            yield from _stack(system, f"{_BLOCK}/{holder}")


def _mounts(system: System, paths: Iterable[str]) -> Iterator[Use]:
    every: dict[str, str] = {}
    numbers = {}
    for path in paths:
        own = path.rpartition("/")[2]
        every |= dict.fromkeys(_with_btrfs(system, own), own)
        for number in _lines(system, f"{path}/dev"):
            numbers[number] = own
    for line in _lines(system, _MOUNTS):
        words = line.split(" ")
        if len(words) < 10 or "-" not in words:
            continue
        source = _name_of(system, words[words.index("-") + 2])
        name = numbers.get(words[2]) or every.get(source, "")
        if name:
            yield "mounted", f"{name} is mounted at {words[4]} [/{_MOUNTS}]"


def _with_btrfs(system: System, name: str) -> list[str]:
    """Return all devices of the Btrfs that this one is of, which may be mounted by any of them."""
    for uuid in system.names("sys/fs/btrfs"):
        devices = system.names(f"sys/fs/btrfs/{uuid}/devices")
        if name in devices:
            return devices
    return [name]


def _name_of(system: System, path: str) -> str:
    """Return the kernel's name of a block device from its path in ``/dev``; empty for others."""
    if not path.startswith("/dev/"):
        return ""
    link = system.link(path.lstrip("/"))
    return link.rpartition("/")[2] if link else path.removeprefix("/dev/").replace("/", "!")


def _exclusive(names: Iterable[str]) -> Iterator[Use]:
    """Yield the devices that somebody holds exclusively, as the disks of an imported pool are.

    open(2): ``O_EXCL`` without ``O_CREAT`` fails with EBUSY on a block device that is in use.
    """
    for name in names:
        path = "/dev/" + name.replace("!", "/")
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                yield "held", f"{name} is held exclusively [{path}: {error.strerror}]"


# --- networks -----------------------------------------------------------------------------------


class _Routes:
    """The routes of the main table, read once."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._defaults: dict[str, str] = {}
        self._routed: set[str] = set()
        for line in _lines(system, "proc/net/route"):
            words = _words(line)
            if len(words) >= 8 and words[0] != "Iface":
                self._add(words[0], words[1] == words[7] == "0" * 8, "proc/net/route")
        for line in _lines(system, "proc/net/ipv6_route"):
            words = _words(line)
            if len(words) < 10 or words[9] == "lo" or _number(words[8]) & _REJECT:
                continue
            is_default = words[1] == "00" and not words[0].strip("0")
            if is_default or not words[0].startswith(("fe80", "ff")):
                self._add(words[9], is_default, "proc/net/ipv6_route")
        self._routed.discard("lo")

    def _add(self, name: str, is_default: bool, path: str) -> None:  # noqa: FBT001 -- of our own
        self._routed.add(name)
        if is_default:
            self._defaults.setdefault(name, path)

    def uses_of(self, name: str) -> Iterator[Use]:
        """Yield the uses of an interface and of all that is above it."""
        above = [name]
        for interface in above:
            uppers = [
                each for each in self._system.names(f"{_NET}/{interface}") if each[:6] == "upper_"
            ]
            above += [upper for each in uppers if (upper := each[6:]) not in above]
        for interface in above:
            through = "" if interface == name else f" through {interface}"
            if interface in self._defaults:
                at = self._defaults[interface]
                yield "route", f"{name} carries the default route{through} [/{at}]"
            elif interface in self._routed and self._routed <= {*above}:
                yield "route", f"{name} carries the only address{through} [/proc/net/route]"
            if interface != name and self._system.has(f"{_NET}/{interface}/bridge"):
                yield "bridge", f"{name} is a port of {interface} [/{_NET}/{name}]"


def _number(text: str) -> int:
    """Parse a hexadecimal number; a text that is none, in a damaged tree, is 0."""
    try:
        return int(text, 16)
    except ValueError:
        return 0


# --- displays, functions ------------------------------------------------------------------------


def _display_uses(system: System, address: str) -> Iterator[Use]:
    """Yield the text console, which is where the firmware's was, and screens that are on."""
    if _is(system, f"{DEVICES}/{address}/boot_vga", "1"):
        for name in system.names("sys/class/vtconsole"):
            at = f"sys/class/vtconsole/{name}"
            driver = " ".join(_lines(system, f"{at}/name"))
            if _is(system, f"{at}/bind", "1") and "dummy" not in driver:
                yield "console", f"{name} is the active console [/{at}/bind]"
                break
    for name in system.names("sys/class/drm"):
        at = f"sys/class/drm/{name}"
        card, is_connector, where = name.partition("-")
        links = system.link(at) + system.link(f"sys/class/drm/{card}/device") + "/"
        if is_connector and f"/{address}/" in links and _is(system, f"{at}/enabled", "enabled"):
            yield "screen", f"{card} drives the screen at {where} [/{at}/enabled]"


def _functions_in_use(system: System, address: str, routes: _Routes) -> Iterator[Use]:
    """Yield virtual functions that serve somebody: they go with the physical one's driver."""
    for name in system.names(f"{DEVICES}/{address}"):
        if not name.startswith("virtfn"):
            continue
        function = system.link(f"{DEVICES}/{address}/{name}").rpartition("/")[2]
        driver = driver_of(system, function)
        if driver in {DRIVER, "pci-stub"}:
            at = f"{DEVICES}/{function}/driver"
            yield "functions", f"its function {function} is with {driver}, for a VM [/{at}]"
        for interface in _below(system, _NET, function):
            for _, what in routes.uses_of(interface):
                yield "functions", f"its function {function}: {what}"


def _is(system: System, path: str, text: str) -> bool:
    return _lines(system, path) == [text]


def _words(line: str) -> list[str]:
    """Return the words of a line of the kernel's: it escapes blanks and tabs in a name alone."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def _lines(system: System, path: str) -> list[str]:
    """Return the lines of a file; none where there is no such file."""
    try:
        return system.read(path).split("\n")  # a mount point's name may hold any other line's end
    except OSError:
        return []
