"""Devices in a Linux guest, through libvirt and through kvm-launch: seen, used, given back."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from . import guests, isolated, moments
from .launched import Launched, left_behind
from .test_devices import CARD, CPUS, PCI, WIRE, define, driver_of, function, left
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*AS_INSTALLED)

EDU, IGBVF, NVME, VIRTIO = "1234:11e8", "8086:10ca", "1b36:0010", "1af4:1041"
ALL = sorted([EDU, EDU, IGBVF, NVME, VIRTIO])

NVME_CARD = "0000:42:00.0"

GROUP = """
[machine]
accel = "kvm"
user = "nobody"

[[pci]]
iommu_group = {group}

[[pci]]
sriov = {{ pf = "{drive}", vf = "auto" }}

[[pci]]
sriov = {{ pf = "{card}", vf = "auto" }}

[[pci]]
address = "{wire}"

[[disk]]
path = "/var/lib/roots.raw"
"""


def vectors(lab: Lab, address: str) -> dict[str, str]:
    """The CPUs of each vector that a guest's driver has enabled, by interrupt."""
    output = lab.output(
        f"for irq in $(grep -F '({address})' /proc/interrupts | grep vfio | cut -d: -f1); do "
        "echo $irq $(cat /proc/irq/$irq/smp_affinity_list); done"
    )
    return dict(line.split(" ", 1) for line in output.splitlines())


@pytest.mark.once
def test_vectors_of_a_driver_that_comes_late_are_on_their_vms_cpus(lab: Lab) -> None:
    """A function of the card, set as asked, in a Linux that loads its driver once it is up: the
    follower finds the new vectors, and puts each on a CPU of the guest; then all is as before."""
    name = lab.output(f"ls {PCI}/{CARD}/net")
    lab.output(f"ip link set {name} up")
    own = function(lab, 0)
    before = lab.snapshot()
    mac = "52:54:00:aa:00:01"
    attributes = f'pools="{CARD}=2" functions="{CARD}/0 mac={mac} vlan=5"'
    path = define(lab, "a", own, attributes=attributes)
    lab.output(f"sed -i 's/{guests.HOLD}/{guests.HOLD} lab.late=igbvf/' {path}")
    lab.output(f"virsh -q create {path}", seconds=180)
    shown = lab.output(f"ip link show {name}")
    assert f"vf 0     link/ether {mac}" in shown
    assert "vlan 5" in shown
    guests.wait_for(lab, guests.log_of("a"), "NESTED-HOLD")
    at_first = vectors(lab, own)
    seen = guests.facts(guests.wait_for(lab, guests.log_of("a"), "NESTED-LATE"))
    assert IGBVF in seen.pci
    assert seen.nets
    own_cpus = {str(cpu) for cpu in CPUS}
    for _ in range(60):
        found = vectors(lab, own)
        if len(found) > len(at_first) and set(found.values()) <= own_cpus:
            break
        time.sleep(1)
    print(f"{lab.variant.name}: {at_first} before the driver, {found} with it")
    assert at_first == {}
    assert len(found) == 3  # igbvf: receive, transmit, mailbox
    assert set(found.values()) <= own_cpus
    isolated.stop(lab, "a")
    assert left(lab, before) == []
    shown = lab.output(f"ip link show {name}")
    assert mac not in shown


def edus(lab: Lab) -> tuple[str, list[str], str]:
    """The group of the edu devices, their addresses, and that of the bridge before them.

    QEMU does not freeze what they are, so the kernel has to find them once more.
    """
    find = "grep -l 0x11e8 /sys/bus/pci/devices/*/device | cut -d/ -f6"
    lab.output(f"for each in $({find}); do echo 1 > {PCI}/$each/remove; done; "
               "echo 1 > /sys/bus/pci/rescan")  # fmt: skip
    addresses = lab.output(find).split()
    assert len(addresses) == 2
    groups = {
        lab.output(f"basename $(readlink {PCI}/{address}/iommu_group)") for address in addresses
    }
    assert len(groups) == 1
    (group,) = groups
    members = lab.output(f"ls /sys/kernel/iommu_groups/{group}/devices").split()
    (bridge,) = set(members) - set(addresses)
    return group, addresses, bridge


@pytest.mark.once
def test_a_part_of_a_group_is_refused(lab: Lab) -> None:
    """An edu device without the other behind its bridge, which has a driver that keeps the group
    from VMs; both are told, and `kvmhooks devices` says the same."""
    group, (edu, other), bridge = edus(lab)
    assert driver_of(lab, bridge) == "shpchp"
    lab.output("modprobe uio_pci_generic; "
               "echo 1234 11e8 > /sys/bus/pci/drivers/uio_pci_generic/new_id")  # fmt: skip
    before = lab.snapshot()
    refused = lab.run(f"virsh -q create {define(lab, 'a', edu)}", seconds=180)
    assert refused.exit_code != 0
    reason = f"IOMMU group {group} goes whole, and in it "
    assert f"{reason}{bridge} is a bridge with shpchp, which has to let go of it" in refused.stderr
    assert f"{other} is uio_pci_generic's" in refused.stderr
    (judged,) = json.loads(lab.kvmhooks("devices", edu, "--json").stdout)
    evidence = [
        objection["evidence"]
        for objection in judged["objections"]
        if objection["reason"] == "group"
    ]
    assert f"{PCI}/{bridge}/driver" in evidence
    assert left(lab, before) == []


def everything(lab: Lab) -> tuple[str, tuple[str, ...]]:
    """The group of three, and the addresses of all that a guest can have: its two edu devices, a
    function of the NVMe drive, one of the network card, and a plain virtio device."""
    lab.plug_nvme()
    lab.output(f"until [ -e {PCI}/{NVME_CARD}/driver ]; do sleep 0.5; done", seconds=60)
    group, addresses, bridge = edus(lab)
    lab.output(f"echo {bridge} > /sys/bus/pci/drivers/shpchp/unbind; modprobe vfio-pci")
    lab.output(f"ip link set $(ls {PCI}/{CARD}/net) up")
    functions = (function(lab, 0, NVME_CARD), function(lab, 0, CARD))
    return group, (*addresses, *functions, WIRE)


def pools(lab: Lab) -> list[str]:
    """Return the numbers of functions of the drive and of the card."""
    return lab.output(f"cat {PCI}/{NVME_CARD}/sriov_numvfs {PCI}/{CARD}/sriov_numvfs").split()


def seen_by(lab: Lab, name: str) -> list[str]:
    """Return those of the devices that a guest's Linux lists."""
    found = guests.facts(guests.wait_for(lab, guests.log_of(name), "NESTED-HOLD"))
    return sorted(device for device in found.pci if device in ALL)


@pytest.mark.once
@pytest.mark.parametrize("ending", ["shutdown", "destroy", "kill -9"])
def test_linux_under_libvirt_has_devices_of_every_kind(used_lab: Lab, ending: str) -> None:
    """It lists a group of three, functions of a drive and of a card that are made for it, and a
    plain device; however it ends, each is with its driver again and the functions are gone."""
    lab = used_lab
    _, addresses = everything(lab)
    before = lab.snapshot()
    path = define(lab, "a", *addresses, attributes=f'pools="{NVME_CARD}=1,{CARD}=1"')
    lab.output(f"virsh -q create {path}", seconds=180)
    assert seen_by(lab, "a") == ALL
    assert {driver_of(lab, address) for address in addresses} == {"vfio-pci"}
    assert pools(lab) == ["1", "1"]
    if ending == "kill -9":
        lab.output("kill -9 $(cat /run/libvirt/qemu/a.pid)")
    else:
        lab.output(f"virsh -q {ending} a", seconds=180)
    lab.output("while virsh -q domstate a; do sleep 0.5; done 2>/dev/null; true", seconds=120)
    assert left(lab, before) == []
    assert pools(lab) == ["0", "0"]


@pytest.mark.once
@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_linux_under_kvm_launch_has_devices_of_every_kind(used_lab: Lab, ending: str) -> None:
    """The same, for a QEMU of an ordinary user that has root's disk: the files of the groups stay
    root's, and it sees no others."""
    lab = used_lab
    group, addresses = everything(lab)
    lab.output("truncate -s 16M /var/lib/roots.raw; chmod 600 /var/lib/roots.raw")
    before = lab.snapshot()
    vm = Launched(lab, "own")
    text = lab.output("cat /root/own.toml").replace('machine.accel = "kvm"\n', "")
    card = lab.output(f"ls {PCI}/{CARD}/net")
    more = GROUP.format(group=group, drive=NVME_CARD, card=card, wire=WIRE)
    lab.put("/root/own.toml", f"{text}\n{more}")
    vm.start()
    assert seen_by(lab, "own") == ALL
    assert {driver_of(lab, address) for address in addresses} == {"vfio-pci"}
    assert pools(lab) == ["1", "1"]
    qemu = vm.qemu()
    status = lab.output(f"grep -E '^(Uid|NoNewPrivs)' /proc/{qemu}/status").split()
    assert status[1] == lab.output("id -u nobody")
    assert lab.output(f"stat -c %U /dev/vfio/{group}") == "root"
    inside = lab.output(f"nsenter -t {qemu} -m ls /dev/vfio").split()
    assert group in inside
    assert len(inside) == 5, inside
    limit = lab.output(f"grep 'Max locked' /proc/{qemu}/limits").split()[3]
    assert int(limit) >= (128 << 20) + (1 << 30)
    vm.finish(killed=ending == "killed")
    assert left(lab, before) == []
    assert pools(lab) == ["0", "0"]
    # Drivers that come back ask the kernel for new interrupts, each where that puts it.
    theirs = ("irq: ", "kvmhooks: /run/kvmhooks/devices.lock ")  # and a lock is never removed
    assert [line for line in left_behind(lab, before) if not line.startswith(theirs)] == []


@pytest.mark.once
def test_a_hook_killed_among_devices_leaves_nothing(lab: Lab) -> None:
    """At random system calls of a start and a stop with a function of a card: libvirt's next call,
    or `kvmhooks reconcile`, gives it back and removes the pool."""
    lab.output(f"ip link set $(ls {PCI}/{CARD}/net) up")
    path = define(lab, "a", function(lab, 0), attributes=f'pools="{CARD}=1"')
    before = lab.snapshot()
    operations = ("prepare", "prepare", "prepare", "release", "release", "release")
    found: dict[str, list[str]] = {}
    for operation, moment in moments.deaths(lab, path, operations):
        lab.kvmhooks("reconcile").checked()
        found[f"{operation}: {moment}"] = left(lab, before)
    assert {at: lines for at, lines in found.items() if lines} == {}
