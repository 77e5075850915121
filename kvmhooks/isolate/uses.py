"""What the host would lose with a PCI function: the last look before a driver is unbound.

``kvmhooks.devices`` tells a person the same, and more, and needs what the hook must not depend on:
a broken virtual environment must neither keep a VM from starting nor have this look left out. A
test holds both to one verdict. The files are those that the modules of that room name.
"""

from __future__ import annotations

import errno
import os

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.functions import DEVICES, DRIVER, driver_of
from kvmhooks.isolate.groups import LIBVIRT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door

    Use = tuple[str, str]
    """What it is (one of the values of ``devices.allow``), and in words, with the evidence."""

SETTING: Final = "devices.allow"

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


def check(door: Door, claim: Claim) -> None:
    """The host does nothing with the functions that are bound for a claim, but what it may lose.

    Raises ``IsolationError`` with what it does, where that is said, and the switch.
    """
    allowed = claim.setting(SETTING).split(",")
    for address in claim.bound:
        found = [use for use in uses_of(door, address) if use[0] not in allowed]
        if found:
            more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            said = "; ".join(what for _, what in found[:_SHOWN])
            reasons = sorted({reason for reason, _ in found})
            raise IsolationError(
                f"{claim.name}: {address}: {said}{more}: give it another device, or say "
                f"{_switch(claim, reasons)}"
            )


def _switch(claim: Claim, reasons: list[str]) -> str:
    """What allows it, where the VM is described; VFIO itself refuses what could send interrupts."""
    more = f", and write Y to /{_UNSAFE}" if "remapping" in reasons else ""
    return f"{_word(claim, reasons)}{more}"


def _word(claim: Claim, reasons: list[str]) -> str:
    if claim.driver == LIBVIRT:
        return f'{SETTING}="{",".join(reasons)}"'
    return f"pci.allow = {reasons}".replace("'", '"')


def uses_of(door: Door, address: str) -> Iterator[Use]:
    """Every use of a function that this host makes."""
    if driver_of(door, address) == DRIVER:
        return  # it was taken from the host by somebody else
    yield from _remapping(door)
    for name in _below(door, _BLOCK, address):
        yield from _disk_uses(door, _shown(name))
    routes = _Routes(door)
    for name in _below(door, _NET, address):
        yield from routes.uses_of(name)
    yield from _display_uses(door, address)
    yield from _functions_in_use(door, address, routes)


def _below(door: Door, kind: str, address: str) -> list[str]:
    """What a class has of a function."""
    return [name for name in door.names(kind) if f"/{address}/" in door.link(f"{kind}/{name}")]


def _remapping(door: Door) -> Iterator[Use]:
    """Where no interrupt is remapped a VM could send the host any."""
    if "intremap=off" in " ".join(_lines(door, "proc/cmdline")).split():
        yield "remapping", "interrupts are not remapped: the VM could send any [/proc/cmdline]"
        return
    for unit in door.names("sys/class/iommu"):
        at = f"sys/class/iommu/{unit}/intel-iommu/ecap"
        try:
            has = int(door.read(at), 16) & _REMAPPING
        except (OSError, ValueError):  # another kind of IOMMU does not say
            continue
        if not has:
            yield "remapping", f"interrupts are not remapped: the VM could send any [/{at}]"
            return


# --- disks --------------------------------------------------------------------------------------


def _shown(name: str) -> str:
    """The name under which a hidden path of an NVMe namespace is used (``nvme0c1n1``)."""
    head, is_path, tail = name.partition("c")
    number, is_namespace, rest = tail.partition("n")
    if name.startswith("nvme") and is_path and is_namespace and number.isdecimal():
        return f"{head}n{rest}"
    return name


def _disk_uses(door: Door, disk: str) -> Iterator[Use]:
    """The uses of a disk, of its partitions and of all that stacks on them."""
    paths = [*dict.fromkeys(_stack(door, f"{_BLOCK}/{disk}"))]
    names = [path.rpartition("/")[2] for path in paths]
    for path, name in zip(paths, names, strict=True):
        holders = door.names(f"{path}/holders")
        if holders:
            yield "held", f"{name} carries {', '.join(holders)} [/{path}/holders]"
    yield from _mounts(door, paths)
    swapped = [_words(line)[0] for line in _lines(door, "proc/swaps")[1:] if _words(line)]
    for path in swapped:
        if _name_of(door, path) in names:
            yield "swap", f"{_name_of(door, path)} is swapped to [/proc/swaps]"
    if door.is_real:
        yield from _exclusive(names)


def _stack(door: Door, path: str) -> Iterator[str]:
    """The places of a disk, of its partitions, and of what holds any of them."""
    name = path.rpartition("/")[2]
    parts = [f"{path}/{part}" for part in door.names(path) if part.startswith(name)]
    for one in (path, *parts):
        yield one
        for holder in door.names(f"{one}/holders"):
            yield from _stack(door, f"{_BLOCK}/{holder}")


def _mounts(door: Door, paths: Iterable[str]) -> Iterator[Use]:
    every: dict[str, str] = {}
    numbers = {}
    for path in paths:
        own = path.rpartition("/")[2]
        every |= dict.fromkeys(_with_btrfs(door, own), own)
        for number in _lines(door, f"{path}/dev"):
            numbers[number] = own
    for line in _lines(door, _MOUNTS):
        words = line.split(" ")
        if len(words) < 10 or "-" not in words:
            continue
        source = _name_of(door, words[words.index("-") + 2])
        name = numbers.get(words[2]) or every.get(source, "")
        if name:
            yield "mounted", f"{name} is mounted at {words[4]} [/{_MOUNTS}]"


def _with_btrfs(door: Door, name: str) -> list[str]:
    """All devices of the Btrfs that this one is of, which may be mounted by any of them."""
    for uuid in door.names("sys/fs/btrfs"):
        devices = door.names(f"sys/fs/btrfs/{uuid}/devices")
        if name in devices:
            return devices
    return [name]


def _name_of(door: Door, path: str) -> str:
    """The kernel's name of a block device that is given by a path in ``/dev``; empty for others."""
    if not path.startswith("/dev/"):
        return ""
    link = door.link(path.lstrip("/"))
    return link.rpartition("/")[2] if link else path.removeprefix("/dev/").replace("/", "!")


def _exclusive(names: Iterable[str]) -> Iterator[Use]:
    """Whether somebody holds a device exclusively, as the disks of an imported pool are.

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

    def __init__(self, door: Door) -> None:
        self._door = door
        self._defaults: dict[str, str] = {}
        self._routed: set[str] = set()
        for line in _lines(door, "proc/net/route"):
            words = _words(line)
            if len(words) >= 8 and words[0] != "Iface":
                self._add(words[0], words[1] == words[7] == "0" * 8, "proc/net/route")
        for line in _lines(door, "proc/net/ipv6_route"):
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
        """The uses of an interface and of all that is above it."""
        above = [name]
        for one in above:
            uppers = [each for each in self._door.names(f"{_NET}/{one}") if each[:6] == "upper_"]
            above += [upper for each in uppers if (upper := each[6:]) not in above]
        for one in above:
            through = "" if one == name else f" through {one}"
            if one in self._defaults:
                at = self._defaults[one]
                yield "route", f"{name} carries the default route{through} [/{at}]"
            elif one in self._routed and self._routed <= {*above}:
                yield "route", f"{name} carries the only address{through} [/proc/net/route]"
            if one != name and self._door.has(f"{_NET}/{one}/bridge"):
                yield "bridge", f"{name} is a port of {one} [/{_NET}/{name}]"


def _number(text: str) -> int:
    """A hexadecimal number; what is none, in a damaged tree, is 0."""
    try:
        return int(text, 16)
    except ValueError:
        return 0


# --- displays, functions ------------------------------------------------------------------------


def _display_uses(door: Door, address: str) -> Iterator[Use]:
    """The text console, which is where the firmware's was, and screens that are on."""
    if _is(door, f"{DEVICES}/{address}/boot_vga", "1"):
        for name in door.names("sys/class/vtconsole"):
            at = f"sys/class/vtconsole/{name}"
            said = " ".join(_lines(door, f"{at}/name"))
            if _is(door, f"{at}/bind", "1") and "dummy" not in said:
                yield "console", f"{name} is the active console [/{at}/bind]"
                break
    for name in door.names("sys/class/drm"):
        at = f"sys/class/drm/{name}"
        card, is_connector, where = name.partition("-")
        links = door.link(at) + door.link(f"sys/class/drm/{card}/device") + "/"
        if is_connector and f"/{address}/" in links and _is(door, f"{at}/enabled", "enabled"):
            yield "screen", f"{card} drives the screen at {where} [/{at}/enabled]"


def _functions_in_use(door: Door, address: str, routes: _Routes) -> Iterator[Use]:
    """Virtual functions that serve somebody: they go when the driver of the physical one goes."""
    for name in door.names(f"{DEVICES}/{address}"):
        if not name.startswith("virtfn"):
            continue
        function = door.link(f"{DEVICES}/{address}/{name}").rpartition("/")[2]
        driver = driver_of(door, function)
        if driver in {DRIVER, "pci-stub"}:
            at = f"{DEVICES}/{function}/driver"
            yield "functions", f"its function {function} is with {driver}, for a VM [/{at}]"
        for interface in _below(door, _NET, function):
            for _, what in routes.uses_of(interface):
                yield "functions", f"its function {function}: {what}"


def _is(door: Door, path: str, text: str) -> bool:
    return _lines(door, path) == [text]


def _words(line: str) -> list[str]:
    """Return the words of a line of the kernel's: it escapes blanks and tabs in a name alone."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def _lines(door: Door, path: str) -> list[str]:
    """The lines of a file; none where there is no such file."""
    try:
        return door.read(path).split("\n")  # a mount point's name may hold any other line's end
    except OSError:
        return []
