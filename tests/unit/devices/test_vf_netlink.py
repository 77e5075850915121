"""The settings of a card's virtual functions, through the messages of the real library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.requests.link import LinkIPRouteFilter

from kvmhooks.cli.main import main
from kvmhooks.cli.vfs import Card, check_set
from kvmhooks.devices.vf_netlink import interface_of, parse, request
from kvmhooks.errors import HostError

PF = "0000:3b:00.0"
SET = {"mac": "52:54:00:12:34:56", "vlan": "5", "rate": "1000", "trust": "yes", "spoofchk": "no"}


def sent_and_received(*requests: dict[str, Any]) -> Any:
    """A link message with these functions, packed as the library sends it and unpacked."""
    message = ifinfmsg()
    listed = {
        "attrs": [
            attribute
            for each in requests
            for attribute in LinkIPRouteFilter("set").get_vf(each)["attrs"]
        ]
    }
    message["attrs"] = [("IFLA_VFINFO_LIST", listed)]
    message.encode()
    received = ifinfmsg(message.data)
    received.decode()
    return received


def test_parse_inverts_request() -> None:
    """The settings that are asked for are read, for each function by its number."""
    other = SET | {"mac": "52:54:00:12:34:57", "trust": "no", "spoofchk": "yes"}
    message = sent_and_received(request(1, SET, min_rate=10), request(7, other))
    assert parse(message) == {1: SET | {"min_rate": "10"}, 7: other | {"min_rate": "0"}}


def test_what_a_driver_does_not_know_is_no_value() -> None:
    """It leaves it out, or says -1, as the kernel does for trust and the spoof check."""
    unknown = request(0, {"mac": "52:54:00:12:34:56"}) | {"trust": 0xFFFF_FFFF}
    assert parse(sent_and_received(unknown)) == {
        0: {
            "mac": "52:54:00:12:34:56", "vlan": "-", "rate": "-", "min_rate": "-", "trust": "-",
            "spoofchk": "-",
        }
    }  # fmt: skip
    assert parse(ifinfmsg()) == {}


def test_a_setting_that_there_is_not_is_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(HostError, match="qos: found no such setting"):
        request(0, {"qos": "1"})


def test_the_interface_of_a_card_is_below_it(tmp_path: Path) -> None:
    """Virtio has one more step; a card without one is told."""
    with pytest.raises(HostError, match="found no network interface"):
        interface_of(PF, tmp_path)
    for number, below in enumerate(("virtio0/net/eth1", "net/eth0"), start=3):
        path = tmp_path / "sys/bus/pci/devices" / PF / below / "ifindex"
        path.parent.mkdir(parents=True)
        path.write_text(f"{number}\n")
        assert interface_of(PF, tmp_path) == number


@pytest.mark.parametrize("verb", ["vfs", "functions"])
def test_the_verb_refuses_what_it_does_not_understand(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the card is looked at; by its former name, too."""
    assert main([verb, PF, "0", "vlan"]) == 2
    assert capsys.readouterr().err == "found 'vlan', expected NAME=VALUE\n"
    assert main([verb, "ffff:ff:1f.7"]) == 1
    assert "found no such device, expected a card with" in capsys.readouterr().err
    for word, expected in WRONG.items():
        assert main([verb, PF, "0", word]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"{word.partition('=')[0]}: found "), word
        assert expected in told


WRONG = {
    "vlan=x": "a number",
    "rate=fast": "Mbit/s",
    "mac=1": "a MAC address",
    "trust=1": "yes or no",
    "colour=red": "no such setting",
}


class Functions:
    """A card in memory; it takes no rate."""

    def __init__(self, count: int) -> None:
        self.has = {
            at: {"mac": "00:00:00:00:00:00", "vlan": "0", "rate": "0"} for at in range(count)
        }

    def read(self, pf: str) -> dict[int, dict[str, str]]:
        assert pf == PF
        return {at: dict(values) for at, values in self.has.items()}

    def write(self, pf: str, number: int, settings: Mapping[str, str]) -> None:
        assert pf == PF
        self.has[number] |= {name: text for name, text in settings.items() if name != "rate"}


def card(root: Path, functions: Functions, total: str | None = "8") -> Card:
    device = root / "sys/bus/pci/devices" / PF
    device.mkdir(parents=True, exist_ok=True)
    if total is not None:
        (device / "sriov_totalvfs").write_text(f"{total}\n")
    return Card(PF, functions.read, functions.write, root)


def test_a_card_is_told_or_refused(tmp_path: Path) -> None:
    """All of its functions, one, or one after it was set, never nothing; and what is not so."""
    with pytest.raises(HostError, match="found no SR-IOV, expected a physical function"):
        card(tmp_path, Functions(0), None)
    empty = card(tmp_path, Functions(0))
    assert (empty.answer(None, {}), empty.most) == ({}, 8)
    with pytest.raises(HostError, match="found no function 0, expected a card that has some now"):
        empty.answer(0, {})
    functions = Functions(2)
    found = card(tmp_path, functions)
    assert found.answer(None, {}) == functions.has
    assert found.answer(1, {}) == {1: functions.has[1]}
    assert found.answer(1, {"vlan": "5"}) == {1: functions.has[1]}
    assert functions.has[1]["vlan"] == "5"
    with pytest.raises(HostError, match="found no function 2, expected 0 to 1"):
        found.answer(2, {"vlan": "5"})
    with pytest.raises(HostError, match="function 0: found rate=0 afterwards, expected rate=9"):
        check_set(PF, 0, found.answer(0, {"rate": "9"})[0], {"rate": "9"})
    check_set(PF, 0, found.answer(0, {"vlan": "7"})[0], {"vlan": "7", "mac": "00:00:00:00:00:00"})
