"""The settings of a card's virtual functions, through the messages of the real library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.requests.link import LinkIPRouteFilter

from kvmhooks.cli.main import main
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
    assert "found no network interface" in capsys.readouterr().err
