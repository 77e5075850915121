"""Devices that a guest has for its life, on a real kernel: bound, given back, refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import isolated
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab
    from .snapshot import Snapshot

pytestmark = pytest.mark.variants(*AS_INSTALLED)

CPUS = (6, 7)
CARD, WIRE = "0000:21:00.0", "0000:41:00.0"
PCI = "/sys/bus/pci/devices"


def policy(attributes: str) -> str:
    """A guest that owns its CPUs and whose devices are ours to bind."""
    devices = f'<kvmhooks:devices managed="yes" {attributes}/>'
    return isolated.POLICY.replace("</kvmhooks:vm>", f"{devices}</kvmhooks:vm>")


def define(
    lab: Lab, name: str, *addresses: str, attributes: str = "", cpus: tuple[int, int] = CPUS
) -> str:
    """The file of a guest with devices that libvirt does not manage."""
    hostdevs = ""
    for address in addresses:
        domain, bus, rest = address.split(":")
        slot, _, function = rest.partition(".")
        hostdevs += (
            "<hostdev mode='subsystem' type='pci' managed='no'><source>"
            f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
            "</source></hostdev>"
        )
    text = isolated.owning(name, cpus, policy=policy(attributes))
    text = text.replace("</devices>", f"{hostdevs}</devices>")
    path = f"/root/{name}.xml"
    lab.put(path, text)
    return path


def driver_of(lab: Lab, address: str) -> str:
    """The driver of a device; empty for none."""
    return lab.run(f"basename $(readlink {PCI}/{address}/driver)").stdout.strip()


def function(lab: Lab, number: int, card: str = CARD) -> str:
    """The address that a virtual function of a card has, or will have."""
    offset, stride = (
        int(lab.output(f"cat {PCI}/{card}/sriov_{what}")) for what in ("offset", "stride")
    )
    place = (int(card[5:7], 16) << 8) + offset + number * stride
    return f"0000:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"


def left(lab: Lab, before: Snapshot) -> list[str]:
    """Return the differences in the devices that remain once they have had time to settle."""
    for _ in range(30):
        time.sleep(1)
        found = [line for line in before.diff(lab.snapshot()) if line.startswith("pci device")]
        held = lab.output("kvmhooks status")
        if not found and held == "nothing is held":
            return []
    return [*found, held]


def test_a_card_makes_a_function_for_a_guest(lab: Lab) -> None:
    """The igb's functions are made without a driver, the first goes to the guest, and all go."""
    lab.output(f"ip link set $(ls {PCI}/{CARD}/net) up")
    first = function(lab, 0)
    before = lab.snapshot()
    attributes = f'pools="{CARD}=2"'
    lab.output(f"virsh -q create {define(lab, 'a', first, attributes=attributes)}", seconds=180)
    assert lab.output(f"cat {PCI}/{CARD}/sriov_numvfs") == "2"
    assert driver_of(lab, first) == "vfio-pci"
    isolated.stop(lab, "a")
    assert lab.output(f"cat {PCI}/{CARD}/sriov_numvfs") == "0"
    assert left(lab, before) == []


@pytest.mark.once
def test_a_card_that_carries_the_default_route_is_refused(lab: Lab) -> None:
    """libvirt shows the reason with the file that says so, and nothing was changed."""
    name = lab.output(f"ls {PCI}/{CARD}/net")
    lab.output(f"ip link set {name} up; ip address add 10.88.0.1/24 dev {name}; "
               f"ip route add default via 10.88.0.2 dev {name} metric 5000")  # fmt: skip
    before = lab.snapshot()
    failed = lab.run(f"virsh -q create {define(lab, 'a', CARD)}", seconds=180)
    assert failed.exit_code != 0
    assert f"{name} carries the default route [/proc/net/route]" in failed.stderr
    assert left(lab, before) == []


@pytest.mark.once
@pytest.mark.parametrize("order", ["ab", "ba", "a killed"])
def test_two_guests_share_a_cards_pool(lab: Lab, order: str) -> None:
    """The pool is made with the first and stays as it is until the last is gone, whoever that is;
    a third that needs a larger one is refused."""
    lab.output(f"ip link set $(ls {PCI}/{CARD}/net) up")
    before, attributes = lab.snapshot(), f'pools="{CARD}=2"'
    functions = {name: function(lab, at) for at, name in enumerate("ab")}
    for name, cpus in (("a", (6, 7)), ("b", (2, 3))):
        path = define(lab, name, functions[name], attributes=attributes, cpus=cpus)
        lab.output(f"virsh -q create {path}", seconds=180)
    number = f"cat {PCI}/{CARD}/sriov_numvfs"
    assert {driver_of(lab, address) for address in functions.values()} == {"vfio-pci"}
    larger = define(lab, "c", function(lab, 2), attributes=f'pools="{CARD}=3"', cpus=(4, 5))
    refused = lab.run(f"virsh -q create {larger}", seconds=180)
    assert refused.exit_code != 0
    assert CARD in refused.stderr
    first, last = ("b", "a") if order == "ba" else ("a", "b")
    if order == "a killed":
        lab.output("kill -9 $(cat /run/libvirt/qemu/a.pid)")
        lab.output("while virsh -q domstate a; do sleep 0.5; done 2>/dev/null; true", seconds=60)
    else:
        isolated.stop(lab, first)
    assert (lab.output(number), driver_of(lab, functions[last])) == ("2", "vfio-pci")
    isolated.stop(lab, last)
    assert left(lab, before) == []
    assert lab.output(number) == "0"
