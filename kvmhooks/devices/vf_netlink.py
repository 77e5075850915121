"""The settings of a card's virtual functions, asked for and set by rtnetlink.

``IFLA_VFINFO_LIST`` and ``IFLA_VF_*`` of linux/if_link.h, of the physical function's network
interface. A driver that does not know a setting leaves it out, or says -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvmhooks.distribution import missing
from kvmhooks.errors import SHOWN, HostError

_VF_INFO: Final = 1
"""``RTEXT_FILTER_VF`` (linux/rtnetlink.h): without it the kernel leaves functions out."""
_MAC: Final = "[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
_NUMBER: Final = r"\d{1,9}"
_UNKNOWN: Final = 0xFFFF_FFFF
_NO_MAC: Final = "00:00:00:00:00:00"
_LEAST_MAC: Final = "02:00:00:00:00:00"
"""The address that some drivers take in the place of none, as libvirt found (``altZeroMAC``,
src/util/virnetdev.c).
"""

Settings = Mapping[str, str]
"""``mac``, ``vlan``, ``trust``, ``spoofchk`` and ``rate`` (Mbit/s) as texts; ``-``: not known."""


def parse(message: Any) -> dict[int, dict[str, str]]:
    """Return the settings of each function that a link message tells, by its number."""
    listed = message.get_attr("IFLA_VFINFO_LIST")
    found = {}
    for info in [] if listed is None else listed.get_attrs("IFLA_VF_INFO"):
        mac = info.get_attr("IFLA_VF_MAC")
        if mac is not None:
            found[int(mac["vf"])] = dict(_settings(info, str(mac["mac"])))
    return found


def _settings(info: Any, mac: str) -> Iterator[tuple[str, str]]:
    yield "mac", mac
    for name, key in (("vlan", "vlan"), ("rate", "max_tx_rate"), ("min_rate", "min_tx_rate")):
        told = info.get_attr("IFLA_VF_VLAN" if name == "vlan" else "IFLA_VF_RATE")
        yield name, "-" if told is None else str(told[key])
    for name in ("trust", "spoofchk"):
        told = info.get_attr(f"IFLA_VF_{name.upper()}")
        value = _UNKNOWN if told is None else told[name]
        yield name, "-" if value == _UNKNOWN else "yes" if value else "no"


def request(number: int, settings: Settings, *, min_rate: int = 0) -> dict[str, Any]:
    """Return what pyroute2 is told to set (``vf`` of ``IPRoute.link()``)."""
    attributes: dict[str, Any] = {"vf": number}
    for name, text in settings.items():
        if name == "mac":
            attributes["mac"] = _checked(name, text, _MAC, "a MAC address")
        elif name == "vlan":
            attributes["vlan"] = int(_checked(name, text, _NUMBER, "a number"))
        elif name == "rate":
            most = int(_checked(name, text, _NUMBER, "Mbit/s"))
            attributes["rate"] = {"min_tx_rate": min_rate, "max_tx_rate": most}
        elif name in {"trust", "spoofchk"}:
            attributes[name] = int(_checked(name, text, "yes|no", "yes or no") == "yes")
        else:
            known = "mac, vlan, trust, spoofchk or rate"
            raise HostError(f"{name}: found no such setting of a function, expected {known}")
    return attributes


def _checked(name: str, text: str, allowed: str, expected: str) -> str:
    if re.fullmatch(allowed, text, re.ASCII) is None:
        raise HostError(f"{name}: found {text[:SHOWN]!r}, expected {expected}")
    return text


def check_card(pf: str, root: Path = Path("/")) -> int:
    """Return the most functions that a card may have. Raises ``HostError`` for one without any."""
    device = root / "sys/bus/pci/devices" / pf
    if not device.exists():
        raise HostError(f"{pf}: found no such device, expected a card with virtual functions")
    total = device / "sriov_totalvfs"
    if not total.exists():
        raise HostError(f"{pf}: found no SR-IOV, expected a physical function that has it")
    return int(total.read_text())


def interface_of(pf: str, root: Path = Path("/")) -> int:
    """Return the number of a card's network interface. Raises ``HostError`` without one."""
    device = root / "sys/bus/pci/devices" / pf
    for path in sorted((*device.glob("net/*/ifindex"), *device.glob("virtio*/net/*/ifindex"))):
        return int(path.read_text())
    raise HostError(f"{pf}: found no network interface, which its functions are set through")


def read(pf: str) -> dict[int, dict[str, str]]:
    """Return the settings of each function of a card. Raises ``HostError``."""
    with _netlink() as netlink:
        messages = list(netlink.link("get", index=interface_of(pf), ext_mask=_VF_INFO))
    return parse(messages[0])


def write(pf: str, number: int, settings: Settings) -> None:
    """Set some settings of a function, one after the other. Raises ``HostError``."""
    known = read(pf).get(number, {}).get("min_rate", "-")
    min_rate = int(known) if known.isdecimal() else 0
    index = interface_of(pf)
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 -- as in _netlink

    with _netlink() as netlink:
        for name, text in settings.items():
            attribute = {name: text}
            try:
                netlink.link("set", index=index, vf=request(number, attribute, min_rate=min_rate))
            except NetlinkError as error:
                if (name, text) != ("mac", _NO_MAC):
                    raise HostError(f"{pf}: function {number}: {name}={text}: {error}") from error
                netlink.link("set", index=index, vf=request(number, {"mac": _LEAST_MAC}))


def _netlink() -> Any:
    try:
        from pyroute2 import IPRoute  # noqa: PLC0415 -- optional, and few need it
    except ImportError as error:
        raise HostError(f"virtual functions: {missing('sriov')}") from error
    return IPRoute()
