"""The administrator's files in ``/etc/kvmhooks``: defaults, limits, and policies of VMs.

``kvmhooks.toml`` holds the settings that every VM starts from, in ``[host]`` the limits below, and
in ``[sriov.CARD]`` how many virtual functions a card is to have.
``vm.d/NAME.toml`` is the policy of a VM whose XML cannot be changed: it is one of ours like a VM
with metadata. Both have a table for each element of the metadata and a key for each of its
attributes (``kvmhooks.policy``). The words nearest to the VM have the say: its
metadata, then its file, then the host's.

These files decide what root does: they are root's own, or they are refused.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.policy import check, from_toml
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from kvmhooks.isolate.system.system import System

DIRECTORY: Final = "etc/kvmhooks"
HOST: Final = f"{DIRECTORY}/kvmhooks.toml"
VMS: Final = f"{DIRECTORY}/vm.d"

BUDGET: Final = 10.0
"""Seconds for one transaction: libvirt holds the VM's lock while its hook runs."""

BUDGET_WITH_PAGES: Final = 30.0
BUDGET_WITH_DEVICES: Final = 30.0

_MOST_SECONDS: Final = 600
_MOST_FUNCTIONS: Final = 65_535
"""``TotalVFs`` has 16 bits."""

_OF_THE_HOST: Final = ("host", "sriov")
"""Tables that are no settings of VMs."""

_PCI: Final = "sys/bus/pci/devices"
_NETS: Final = "sys/class/net"


class Limits:
    """The administrator's limits for every VM: bounds, and whose groups we may touch."""

    __slots__ = ("budget", "budget_devices", "budget_hugepages", "housekeeping", "raw_groups")

    def __init__(
        self,
        *,
        housekeeping: CpuSet | None = None,
        budget: float = BUDGET,
        budget_hugepages: float = BUDGET_WITH_PAGES,
        budget_devices: float = BUDGET_WITH_DEVICES,
        raw_groups: bool = False,
    ) -> None:
        self.housekeeping = CpuSet() if housekeeping is None else housekeeping
        """CPUs that no VM may own."""
        self.budget = budget
        """Seconds that one hook call may take."""
        self.budget_hugepages = budget_hugepages
        """The same for a `prepare` that needs huge pages."""
        self.budget_devices = budget_devices
        """The same for one that has drivers unbound."""
        self.raw_groups = raw_groups
        """Groups that are no unit's of systemd are narrowed, if they have no CPUs set."""


def policy_of(system: System, name: str) -> dict[str, str] | None:
    """Return the settings in a VM's own file, checked; None when it has none.

    Raises ``IsolationError``.
    """
    path = file_of(name)
    text = system.administrators(path) if path else None
    if text is None:
        return None
    tables = _parsed(path, text)
    for table in _OF_THE_HOST:
        if table in tables:
            raise IsolationError(f"/{path}: {table}: found it here, expected it in /{HOST} alone")
    return _settings(path, tables)


def defaults(system: System) -> dict[str, str]:
    """Return the settings that every VM of ours starts from, checked. Raises ``IsolationError``."""
    tables = _host(system)
    for table in _OF_THE_HOST:
        tables.pop(table, None)
    return _settings(HOST, tables)


def limits(system: System) -> Limits:
    """Return the limits that no VM may exceed. Raises ``IsolationError``."""
    table = _host(system).get("host", {})
    if not isinstance(table, dict):
        raise _refused(HOST, "host", table, "a table")
    known = Limits()
    for key, value in table.items():
        if key == "housekeeping":
            known.housekeeping = _cpus(value)
        elif key in {"budget", "budget_devices", "budget_hugepages"}:
            setattr(known, key, _seconds(key, value))
        elif key == "raw_groups":
            known.raw_groups = _yes_or_no(key, value)
        else:
            raise _refused(HOST, f"host.{key}", value, f"one of {', '.join(Limits.__slots__)}")
    return known


def narrows_raw_groups(system: System) -> bool:
    """Return whether groups that are no unit's may be narrowed; not by a file that is refused.

    A start says what is wrong with it. Groups that were taken can be given back all the same.
    """
    try:
        return limits(system).raw_groups
    except IsolationError as error:
        system.log(f"{error}", severity=4)
        return False


def functions(system: System) -> dict[str, int]:
    """Return the number of virtual functions that each card is to have, by address or interface.

    Raises ``IsolationError``.
    """
    cards = _host(system).get("sriov", {})
    if not isinstance(cards, dict):
        raise _refused(HOST, "sriov", cards, "a table for each card")
    found = {}
    for card, table in cards.items():
        at = f"sriov.{card}"
        if not isinstance(table, dict) or table.keys() != {"vfs"}:
            raise _refused(HOST, at, table, "a table with vfs alone")
        count = table["vfs"]
        if (
            isinstance(count, bool)
            or not isinstance(count, int)
            or not 0 < count <= _MOST_FUNCTIONS
        ):
            raise _refused(HOST, f"{at}.vfs", count, f"1 to {_MOST_FUNCTIONS}")
        if not address_of(system, card):
            raise _refused(HOST, at, card, "the address or the interface of a card of this host")
        found[card] = count
    return found


def address_of(system: System, card: str) -> str:
    """Return the address of a card by it or by its network interface; empty where there is none."""
    if "/" in card or "\0" in card or card in {"", ".", ".."}:
        return ""
    if system.has(f"{_PCI}/{card}"):
        return card
    link = system.link(f"{_NETS}/{card}/device")
    address = link.rpartition("/")[2]
    return address if address and system.has(f"{_PCI}/{address}") else ""


def file_of(name: str) -> str:
    """Return the path of a VM's own file; empty for a name that is no file's."""
    if not 0 < len(name) <= 200 or name.startswith(".") or "/" in name or "\0" in name:
        return ""
    return f"{VMS}/{name}.toml"


def _host(system: System) -> dict[str, Any]:
    text = system.administrators(HOST)
    return {} if text is None else _parsed(HOST, text)


def _parsed(path: str, text: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 -- as long as the interpreter's start, and most hosts have none

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise IsolationError(f"/{path}: {error}") from error


def _settings(path: str, tables: Mapping[str, Any]) -> dict[str, str]:
    """Return ``element.attribute`` and its text, for every key of every table."""
    found = {}
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise _refused(path, table, values, "a table such as [isolation]")
        for key, value in values.items():
            found[f"{table}.{key}"] = _text(path, f"{table}.{key}", value)
    check(found, f"/{path}")
    return found


def _text(path: str, at: str, value: object) -> str:
    """Return a value as the metadata has it."""
    if isinstance(value, bool | int | str):
        return from_toml(value)
    raise _refused(path, at, value, "a text, a whole number, true or false")


def _cpus(value: object) -> CpuSet:
    try:
        return CpuSet.parse(value) if isinstance(value, str) else CpuSet.parse("none")
    except ValueFormatError as error:
        raise _refused(HOST, "host.housekeeping", value, error.expected) from error


def _yes_or_no(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused(HOST, f"host.{key}", value, "true or false")
    return value


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 -- NaN
        raise _refused(HOST, f"host.{key}", value, "seconds")
    if not 1 <= value <= _MOST_SECONDS:
        raise _refused(HOST, f"host.{key}", value, f"1 to {_MOST_SECONDS} seconds")
    return float(value)


def _refused(path: str, at: str, value: object, expected: str) -> IsolationError:
    return IsolationError(f"/{path}: {at}: found {value!r:.60}, expected {expected}")
