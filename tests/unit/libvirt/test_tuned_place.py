"""The place of a domain that is tuned: kept, bettered, another program's, or none on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.administrator import Limits
from kvmhooks.libvirt.edit.text import parse
from kvmhooks.libvirt.importing.cpu import vcpu_pins
from kvmhooks.libvirt.tuning.tune import Tuned, tune
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import write_host

OWN = "0b6f3f5e-42b8-4d57-93c1-0f6d8c6a1c02"
OTHER = "00000001-0000-0000-0000-000000000000"
PARTS = ("cpus", "nodes", "kernel", "kvm", "pci")
NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two nodes of four cores with two threads (siblings are N and N + 8), two cores to an L3."""
    pci = (
        FakePci("0000:3b:00.0", node=0),
        FakePci("0000:af:00.0", node=1),
        FakePci("0000:b1:00.0", class_="0x010802", node=1),
    )
    root = write_host(
        tmp_path, packages=2, cores=4, threads=2, nodes=2, l3_cores=2, memory_mib=4096,
        hugepages={2048: (512, 512)}, pci=pci,
    )  # fmt: skip
    return read(root, PARTS)


def domain(
    pins: str,
    *,
    threads: int = 1,
    more: str = "",
    devices: str = "",
    cputune: str = "",
    memory: int = 1024,
    machine: str = "q35",
) -> str:
    """A domain whose vCPUs have these CPUs, in order, a semicolon between them."""
    sets = [text for text in pins.split(";") if text]
    count = len(sets) or 2
    listed = "".join(f"<vcpupin vcpu='{at}' cpuset='{text}'/>" for at, text in enumerate(sets))
    return (
        f"<domain type='kvm'><name>vm</name><uuid>{OWN}</uuid>{more}"
        f"<memory unit='MiB'>{memory}</memory><vcpu>{count}</vcpu>"
        f"<cputune>{listed}{cputune}</cputune>"
        f"<os><type arch='x86_64' machine='{machine}'>hvm</type></os>"
        f"<cpu mode='host-passthrough'><topology sockets='1' cores='{count // threads}' "
        f"threads='{threads}'/></cpu><devices>{devices}</devices></domain>"
    )


def card(bus: str, tag: str = "hostdev") -> str:
    """A card of the host, as libvirt has it: a device, an interface, or an NVMe disk."""
    address = f"domain='0x0000' bus='{bus}' slot='0x00' function='0x0'"
    if tag == "disk":
        source = f"<source type='pci' managed='yes' namespace='1'><address {address}/></source>"
        return f"<disk type='nvme'>{source}<target dev='vda' bus='virtio'/></disk>"
    if tag == "interface":
        source = f"<source><address type='pci' {address}/></source>"
        return f"<interface type='hostdev' managed='yes'>{source}</interface>"
    source = f"<source><address {address}/></source>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'>{source}</hostdev>"


def placed(document: str, place: Host | Inventory) -> Tuned:
    """A domain that is tuned in its place alone."""
    return tune(document, place, only={"cpu", "memory"})


def pins_of(tuned: Tuned) -> str:
    """Its pins, as ``domain`` takes them."""
    pins = vcpu_pins(parse(tuned.document).root)
    return ";".join(str(pins[vcpu]) for vcpu in sorted(pins))


@pytest.mark.parametrize(
    ("pins", "threads", "after", "gains"),
    [
        ("2;3", 1, "2;3", ()),  # as good as any
        ("6;7", 1, "6;7", ()),  # so is the other node
        ("7;6", 1, "7;6", ()),
        ("1;2", 1, "2;3", ("1 L3 cache instead of 2",)),
        ("2;6", 1, "2;3", ("1 node instead of 2", "1 L3 cache instead of 2")),
        ("2;10;3;11", 2, "2;10;3;11", ()),
        ("2;3;10;11", 2, "2;10;3;11", ("whole cores",)),
        ("2;10", 1, "2;3", ("whole cores",)),
        ("0;1", 1, "0;1", ()),  # other CPUs are the host's
        ("2;99", 1, "2;3", ("CPUs that are online",)),
        ("4;5;6;7", 1, "4;5;6;7", ()),  # a whole node: another core is the host's
    ],
)
def test_a_place_that_is_as_good_stays(
    host: Host, pins: str, threads: int, after: str, gains: tuple[str, ...]
) -> None:
    """And whoever gets a better one is told what is better about it."""
    document = domain(pins, threads=threads)
    tuned = placed(document, host)
    assert pins_of(tuned) == after
    told = [gain for gain in tuned.gains if not gain.startswith(("cpu (", "memory of", "QEMU"))]
    assert tuple(told) == gains


@pytest.mark.parametrize("tag", ["hostdev", "interface", "disk"])
def test_a_devices_node_counts(host: Host, tag: str) -> None:
    """In each way that libvirt has for it the VM goes to its node, and stays there."""
    kind = {"disk": "disk's node (0000:b1:00.0)"}.get(tag, "network card's node (0000:af:00.0)")
    bus = "0xb1" if tag == "disk" else "0xaf"
    tuned = placed(domain("1;2", devices=card(bus, tag)), host)
    assert set(CpuSet.parse(pins_of(tuned).replace(";", ","))) <= {4, 5, 6, 7, 12, 13, 14, 15}
    assert f"its {kind}" in tuned.gains
    again = placed(tuned.document.decode(), host)
    assert (again.changes, again.gains) == ((), ())


def test_real_time_threads_go_to_isolated_cpus(host: Host) -> None:
    """By libvirt's scheduler or kvmhooks' policy; without either such CPUs are nothing special."""
    assert host.kernel is not None
    isolating = evolve(host, kernel=evolve(host.kernel, isolated=CpuSet.parse("6-7,14-15")))
    fifo = "<vcpusched vcpus='0-1' scheduler='fifo' priority='1'/>"
    policy = (
        "<metadata><k:vm xmlns:k='urn:kvmhooks:1'><k:threads vcpus='fifo:1'/></k:vm></metadata>"
    )
    for document in (domain("2;3", cputune=fifo), domain("2;3", more=policy)):
        tuned = placed(document, isolating)
        assert (pins_of(tuned), tuned.gains[0]) == ("6;7", "CPUs that the kernel isolates")
        assert placed(tuned.document.decode(), isolating).changes == ()
    assert pins_of(placed(domain("2;3"), isolating)) == "2;3"


def test_what_a_vm_holds_is_its_own(host: Host) -> None:
    """When it runs too: its CPUs, its memory, and the huge pages that it has mapped."""
    nodes = tuple(evolve(node, hugepages=None) for node in host.nodes or ())
    plain = evolve(host, nodes=nodes)
    held = Holding(name="vm", uuid=OWN, dedicated=CpuSet((2, 3)), memory=((0, 4 << 20),))
    assert pins_of(placed(domain("2;3"), Inventory(host=plain, holdings=(held,)))) == "2;3"
    assert (
        pins_of(
            placed(
                domain("2;3"),
                plain,
            )
        )
        == "2;3"
    )
    other = evolve(held, uuid=OTHER, name="other")
    moved = placed(domain("2;3"), Inventory(host=plain, holdings=(other,)))
    assert (pins_of(moved), moved.gains[0]) == ("6;7", "none of other's CPUs")


def test_huge_pages_that_a_running_vm_has_are_there_for_it(host: Host) -> None:
    """The kernel counts them as no longer free; without the VM they are another's."""
    pages = "<memoryBacking><hugepages/></memoryBacking>"
    bound = "<numatune><memory mode='strict' nodeset='0'/></numatune>"
    document = domain("2;3", more=pages + bound)
    full = evolve(
        host,
        nodes=tuple(
            evolve(
                node,
                hugepages=tuple(evolve(pool, free=0) for pool in node.hugepages or ()),
            )
            for node in host.nodes or ()
        ),
    )
    held = Holding(name="vm", uuid=OWN, dedicated=CpuSet((2, 3)))
    runs = placed(document, Inventory(host=full, holdings=(held,)))
    assert not any("not placed" in sentence for sentence in runs.advice)
    assert pins_of(runs) == "2;3"
    stopped = placed(document, full)
    assert any("not placed" in sentence for sentence in stopped.advice)
    promised = evolve(held, hugepages=((0, 2048, 512),))
    waits = placed(document, Inventory(host=full, holdings=(promised,)))
    assert any("not placed" in sentence for sentence in waits.advice)


@pytest.mark.parametrize(
    ("metadata", "machine", "name"),
    [
        (f"<nova:instance xmlns:nova='{NOVA}'/>", "q35", "OpenStack Nova"),
        (
            f"<nova:instance xmlns:nova='{NOVA.replace('1.1', '1.0')}'/>", "q35", "OpenStack Nova",
        ),
        ("<ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/>", "q35", "oVirt"),
        ("<o:qos xmlns:o='http://ovirt.org/vm/tune/1.0'/>", "q35", "oVirt"),
        ("<kubevirt xmlns='http://kubevirt.io'><uid>1</uid></kubevirt>", "q35", "KubeVirt or"),
        ("", "pc-q35-9.2+pve1", "Proxmox VE"),
    ],
)  # fmt: skip
def test_a_managers_vm_is_not_moved(host: Host, metadata: str, machine: str, name: str) -> None:
    """It is said who places it and what would be better; `repin` does it. The rest is tuned."""
    document = domain("2;6", more=f"<metadata>{metadata}</metadata>", machine=machine)
    tuned = tune(document, host)
    assert pins_of(tuned) == "2;6"
    assert not any(change.at.startswith(("cputune", "numatune")) for change in tuned.changes)
    assert "clock (2 changes)" in tuned.gains
    (advice,) = (sentence for sentence in tuned.advice if name in sentence)
    assert "1 node instead of 2" in advice
    assert "--repin" in advice
    moved = tune(document, host, repin=True)
    assert pins_of(moved) == "2;3"
    assert not any(name in sentence for sentence in moved.advice)
    assert not any("places this VM" in sentence for sentence in tune(domain("2;6"), host).advice)


def test_what_does_not_fit_keeps_its_pins_and_is_tuned_in_the_rest(host: Host) -> None:
    """And it is said once why it was not placed; a profile that cannot be met is refused still."""
    document = domain("2;3", memory=1 << 20)
    tuned = tune(document, host)
    assert pins_of(tuned) == "2;3"
    assert {change.concern for change in tuned.changes} == {"cpu", "clock"}
    (advice,) = (sentence for sentence in tuned.advice if "not placed" in sentence)
    assert "memory.size" in advice
    with pytest.raises(PlanError):
        tune(document, host, profile="realtime")


def test_the_administrators_cpus_are_left_to_the_host(host: Host) -> None:
    """Also by a VM that has them already: the hook would refuse its claim."""
    place = Inventory(host=host, limits=Limits(housekeeping=CpuSet.parse("0,8,4-5,12-13")))
    tuned = placed(domain("4;5;6;7"), place)
    assert CpuSet.parse(pins_of(tuned).replace(";", ",")).isdisjoint(CpuSet.parse("0,4-5"))
    assert "no CPU that is kept for the host" in tuned.gains


def test_shares_of_caches_bind_a_vm_to_them(host: Host) -> None:
    """A domain that names the L3 caches that it is on stays there while it may."""
    shares = "<cachetune vcpus='0-1'><cache id='0' level='3' type='both' size='1' unit='MiB'/>"
    document = domain("1;2", cputune=f"{shares}</cachetune>")
    assert pins_of(placed(document, host)) == "1;2"
    assert pins_of(placed(domain("1;2"), host)) == "2;3"
    gone = placed(domain("2;6", cputune=f"{shares}</cachetune>"), host)
    assert pins_of(gone) == "2;3"
    assert "cputune/cachetune names caches of the CPUs before: change it" in gone.advice


def test_pins_and_memory_stay_together_when_one_of_them_is_tuned(host: Host) -> None:
    """`--only cpu` keeps vCPUs on the node of their memory, `--only memory` binds that there."""
    bound = "<numatune><memory mode='strict' nodeset='1'/></numatune>"
    tuned = tune(domain("2;3", more=bound), host, only={"cpu"})
    assert pins_of(tuned) == "6;7"
    assert b"nodeset='1'" in tuned.document
    both = placed(domain("2;3", more=bound), host)
    assert (pins_of(both), b"nodeset='0'" in both.document) == ("2;3", True)
    alone = tune(domain("4;7"), host, only={"memory"})
    assert pins_of(alone) == "4;7"
    assert b"nodeset='1'" in alone.document


DISK = "<disk type='file'><source file='/a.img'/><target dev='vda' bus='virtio'/></disk>"
EXCLUSIVE = (
    "<metadata><k:vm xmlns:k='urn:kvmhooks:1'><k:isolation exclusive='yes'/></k:vm></metadata>"
)


@pytest.mark.parametrize(
    ("pins", "words", "iothreads"),
    [
        ("2;3", {"only": {"disks"}}, "0,8"),
        ("2;3", {"keep_pins": True}, "0,8"),
        ("98;99", {"keep_pins": True}, "0,8"),
        ("2;3", {}, "0,8"),
        (";".join(map(str, range(2, 18))), {}, "0,8"),  # more than there are
    ],
)
def test_a_new_iothread_has_its_pin(
    host: Host, pins: str, words: dict[str, Any], iothreads: str
) -> None:
    """A VM with CPUs of its own gets none without, wherever its place is not tuned."""
    emulator = "<emulatorpin cpuset='0,8'/>"
    for more in (EXCLUSIVE, ""):
        document = domain(pins, more=more, devices=DISK, cputune=emulator)
        root = parse(tune(document, host, **words).document).root
        found = root.find("cputune/iothreadpin")
        assert found is not None
        assert (found.get("iothread"), found.get("cpuset")) == ("1", iothreads)
    bare = domain(pins, more=EXCLUSIVE, devices=DISK)
    tuned = tune(bare, host, **words)
    has_pin = parse(tuned.document).root.find("cputune/iothreadpin") is not None
    assert has_pin == (b"<iothreads>" in tuned.document)
    assert has_pin or any("iothreads: none are added" in sentence for sentence in tuned.advice)
