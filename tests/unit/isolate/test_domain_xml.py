"""A domain XML becomes a claim, or a refusal that names the remedy."""

from __future__ import annotations

import time

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import MAX_BYTES, read_claim
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettingsDemand
from kvmhooks.values import CpuSet

UUID = "0b1c2d3e-0000-4000-8000-000000000001"


def domain(policy: str, *, tune: str = "", rest: str = "", vcpu: str = "<vcpu>2</vcpu>") -> str:
    """A domain with two vCPUs and 4 GiB."""
    return f"""<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>
      <metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">{policy}</kvmhooks:vm></metadata>
      <memory unit='GiB'>4</memory>{vcpu}<cputune>{tune}</cputune>{rest}</domain>"""


PINS = "<vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='1' cpuset='3'/><emulatorpin cpuset='0-1'/>"
EXCLUSIVE = '<kvmhooks:isolation exclusive="yes"/>'


def test_a_domain_without_our_metadata_makes_no_claim() -> None:
    """Neither the absence of metadata nor another tool's metadata is ours."""
    assert read_claim("<domain><name>a</name></domain>") is None
    assert read_claim("not even XML") is None
    assert read_claim("<domain><description>urn:kvmhooks:1</description></domain>") is None


def test_exclusive_is_the_union_of_the_vcpu_pins() -> None:
    """The whole claim is compared, so that a stray field fails."""
    assert read_claim(domain(EXCLUSIVE, tune=PINS)) == Claim(
        driver="qemu", uuid=UUID, name="web", exclusive=CpuSet.parse("2-3")
    )


def test_devices_that_libvirt_leaves_alone_are_ours_if_the_policy_says_so() -> None:
    """A host device, a virtual function as a network interface, and a disk that is a controller."""
    address = "<address type='pci' domain='0' bus='0x{}' slot='0x00' function='0x1'/>"
    rest = (
        "<devices><hostdev mode='subsystem' type='pci' managed='{}'><source>"
        f"{address.format('01')}</source></hostdev>"
        f"<interface type='hostdev'><source>{address.format('02')}</source></interface>"
        "<disk type='nvme' device='disk'><source type='pci' managed='{}' namespace='1'>"
        f"{address.format('03')}</source></disk></devices>"
    )
    asked = '<kvmhooks:devices managed="yes" allow="mounted"/>'
    first, second, third = (f"0000:0{bus}:00.1" for bus in (1, 2, 3))
    assert read_claim(domain(asked, rest=rest.format("no", "no"))) == Claim(
        driver="qemu",
        uuid=UUID,
        name="web",
        exclusive=CpuSet(),
        settings=(("devices.managed", "yes"),),
        devices=(first, second),
        demands=[FunctionDemand(address, ["mounted"]) for address in (first, second, third)],
    )
    claim = read_claim(domain(asked, rest=rest.format("yes", "yes")))
    assert claim is not None
    assert (claim.devices, claim.asks_of("functions")) == ((first, second), (second,))
    claim = read_claim(domain("", rest=rest.format("no", "no")))
    assert claim is not None
    assert (claim.devices, claim.demands) == ((), {})


def test_settings_keep_only_what_differs_from_the_defaults() -> None:
    """A default that is spelled out makes the same claim as one that is left out."""
    claim = read_claim(
        domain(
            '<kvmhooks:isolation exclusive="no" strict="yes" irqs="yes"/>'
            '<kvmhooks:power governor="performance"/>'
        )
    )
    assert claim == Claim(
        driver="qemu",
        uuid=UUID,
        name="web",
        exclusive=CpuSet(),
        strict=True,
        settings=(("power.governor", "performance"),),
    )


@pytest.mark.parametrize(
    ("vcpu", "tune", "message"),
    [
        ("<vcpu>2</vcpu>", "", "vCPU 0: found no pin"),
        ("<vcpu>3</vcpu>", PINS, "virsh vcpupin web 2 CPU --config"),
        ("<vcpu placement='auto'>2</vcpu>", PINS, "kvmhooks tune web"),
        ("<vcpu>2</vcpu>", PINS.replace("'3'", "'2'"), "share the 1 CPUs 2"),
        ("<vcpu>2</vcpu>", PINS.replace("'3'", "'3-4'"), "found 3-4, expected one CPU"),
        ("<vcpu>2</vcpu>", PINS.replace("0-1", "0-2"), "virsh emulatorpin web CPUS --config"),
        ("<vcpu>2</vcpu>", PINS.replace("emulatorpin", "other"), "emulatorpin: found none"),
        ("<vcpu>2</vcpu><iothreads>1</iothreads>", PINS, "virsh iothreadpin web 1 CPUS"),
        ("<vcpu>99999999</vcpu>", PINS, "expected 1 to"),
        ("<vcpu>2</vcpu>", PINS.replace("'3'", "'x'"), "found 'x'"),
    ],
)
def test_a_claim_that_its_pins_cannot_meet_names_the_remedy(
    vcpu: str, tune: str, message: str
) -> None:
    """Each refusal says which element, and the command that fixes it."""
    with pytest.raises(IsolationError, match=message):
        read_claim(domain(EXCLUSIVE, tune=tune, vcpu=vcpu))


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("'3'", "'{}'"),
        ("'0-1'", "'{}'"),
        ("'3'", "'{}x'"),
    ],
    ids=["vCPU", "emulator", "no list"],
)
def test_a_refusal_has_only_the_beginning_of_a_set(was: str, now: str) -> None:
    """A pin to each second of 65,536 CPUs is a list of 190 KB, and no line for a log."""
    every_second = ",".join(map(str, range(0, 65_536, 2)))
    with pytest.raises(IsolationError, match=r"found .?0,2,4,6.*…") as caught:
        read_claim(domain(EXCLUSIVE, tune=PINS.replace(was, now.format(every_second))))
    assert len(str(caught.value)) < 400


def test_iothreads_that_are_listed_count_towards_the_number() -> None:
    """Two threads, one of them listed as 7: libvirt names the other 1."""
    xml = domain(
        EXCLUSIVE,
        tune=PINS + "<iothreadpin iothread='7' cpuset='0'/><iothreadpin iothread='1' cpuset='1'/>",
        rest="<iothreads>2</iothreads><iothreadids><iothread id='7'/></iothreadids>",
    )
    claim = read_claim(xml)
    assert claim is not None
    assert claim.exclusive == CpuSet.parse("2-3")


CARD, MDEV = "0000:3b:00.0", "c0d5a2b0-0000-4000-8000-000000000001=0000:3b:00.0/nvidia-35"
FUNCTIONS = "functions with a VLAN up to 4094, a MAC address of one device"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (f"functions='{CARD}/0 vlan=5;{CARD}/0 trust=yes'", f"{CARD}/0 twice, expected it once"),
        (
            f"functions='{CARD}/0 vlan=5;{CARD}/1 vlan=6;{CARD}/10 vlan=5;{CARD}/1 rate=5'",
            f"{CARD}/1 twice, expected it once",
        ),
        (f"functions='{CARD}/1 rate=1;{CARD}/0 vlan=5 mac=52:54:00:00:00:01 vlan=7'", "vlan twice"),
        (f"functions='{CARD}/00 vlan=5'", FUNCTIONS),
        (f"functions='{CARD}/0 vlan=9999'", FUNCTIONS),
        (f"functions='{CARD}/0 vlan=4095'", FUNCTIONS),
        (f"functions='{CARD}/0 vlan=05'", FUNCTIONS),
        (f"functions='{CARD}/0 vlan=\u0665'", FUNCTIONS),
        (f"functions='{CARD}/0 rate=05'", FUNCTIONS),
        (f"functions='{CARD}/0 mac=ff:ff:ff:ff:ff:ff'", FUNCTIONS),
        (f"pools='{CARD}=3,0000:3b:00.1=3,{CARD}=5'", f"{CARD} twice, expected it once"),
        (f"pools='{CARD}=3\u0663'", "virtual functions to make"),
        (f"mdevs='{MDEV},{MDEV[:-2]}47'", f"{MDEV[:36]} twice, expected it once"),
    ],
)
def test_a_device_that_cannot_be_is_refused(devices: str, message: str) -> None:
    """Each thing is asked for once, in the kernel's own words: with the place and what is there."""
    with pytest.raises(IsolationError) as caught:
        read_claim(domain(f"{EXCLUSIVE}<kvmhooks:devices {devices}/>", tune=PINS))
    assert str(caught.value).startswith(
        f"kvmhooks metadata: devices.{devices.partition('=')[0]}: found "
    )
    assert message in str(caught.value)


@pytest.mark.parametrize("vlan", [0, 1, 9, 10, 99, 100, 999, 1000, 3999, 4000, 4089, 4090, 4094])
def test_every_vlan_may_be_asked_for(vlan: int) -> None:
    """The same settings may be those of several functions."""
    functions = f"{CARD}/0 vlan={vlan} rate=0;{CARD}/10 vlan={vlan}"
    claim = read_claim(domain(f"{EXCLUSIVE}<kvmhooks:devices functions='{functions}'/>", tune=PINS))
    assert claim is not None
    assert [demand.settings["vlan"] for demand in claim.of(VfSettingsDemand)] == [str(vlan)] * 2


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ('<kvmhooks:isolation exclusif="yes"/>', "did you mean isolation.exclusive"),
        ('<kvmhooks:isolation exclusive="1"/>', 'expected "yes" or "no"'),
        ('<kvmhooks:power governor="../../x"/>', "expected a cpufreq governor"),
    ],
)
def test_a_setting_that_is_not_in_the_table_is_refused(policy: str, message: str) -> None:
    """A typing error does not pass as a policy."""
    with pytest.raises(IsolationError, match=message):
        read_claim(domain(policy, tune=PINS))


@pytest.mark.parametrize(
    ("rest", "pages"),
    [
        ("", ()),
        ("<memoryBacking><hugepages/></memoryBacking>", ((-1, 0, 4 << 20),)),
        (
            (
                "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>"
                "<numatune><memory mode='strict' nodeset='1'/></numatune>"
            ),
            ((1, 1 << 20, 4),),
        ),
        (
            (
                "<memoryBacking><hugepages><page size='2048'/><page size='1' unit='G' nodeset='1'/>"
                "</hugepages></memoryBacking><numatune><memnode cellid='0' nodeset='0'/>"
                "<memnode cellid='1' nodeset='1'/></numatune><cpu><numa>"
                "<cell id='0' memory='1048576'/><cell id='1' memory='3' unit='GiB'/></numa></cpu>"
            ),
            ((0, 2048, 512), (1, 1 << 20, 3)),
        ),
        (
            (
                "<memoryBacking><hugepages><page size='2048'/></hugepages></memoryBacking>"
                "<numatune><memory mode='interleave' nodeset='0-1'/></numatune>"
            ),
            ((0, 2048, 1024), (1, 2048, 1024)),
        ),
    ],
)
def test_huge_pages_follow_the_cells_and_their_nodes(
    rest: str, pages: tuple[tuple[int, int, int], ...]
) -> None:
    """Per node and size, rounded up to whole pages."""
    claim = read_claim(domain("", rest=rest))
    assert claim is not None
    assert claim.of(HugePageDemand) == tuple(HugePageDemand(*each) for each in pages)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\x1fb"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    """A name may become part of a path."""
    with pytest.raises(IsolationError):
        read_claim(domain("").replace("<name>web</name>", f"<name>{name}</name>"))


def test_a_uuid_that_is_none_is_refused() -> None:
    """It names the claim's file."""
    with pytest.raises(IsolationError, match="uuid"):
        read_claim(domain("").replace(UUID, "../../etc/passwd"))


BOMB = (
    '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12))
    + "]>"
)


@pytest.mark.parametrize(
    "xml",
    [
        BOMB + domain("").replace("web", "&m;"),
        domain("") + " " * (50 << 20),
        domain("<a>" * 200_000),
        domain("", rest="<x " + " ".join(f"a{n}='1'" for n in range(400_000)) + "/>"),
        domain("").replace("</domain>", ""),
    ],
    ids=["entities", "50 MB", "depth", "attributes", "cut short"],
)
def test_a_bomb_is_refused_quickly(xml: str) -> None:
    """Bounded input: an entity bomb and 50 MB alike."""
    before = time.process_time()
    with pytest.raises(IsolationError):
        read_claim(xml)
    assert time.process_time() - before < 0.5
    assert len(xml) < MAX_BYTES or read_claim(" " * len(xml)) is None


def test_a_claim_survives_json() -> None:
    """from_json inverts to_json."""
    claim = read_claim(
        domain(EXCLUSIVE + '<kvmhooks:storage scheduler="none"/>', tune=PINS,
               rest="<devices><disk type='block'><source dev='/dev/sdb'/></disk></devices>")
    )  # fmt: skip
    assert claim is not None
    assert claim.disks == ("/dev/sdb",)
    assert Claim.from_json(claim.to_json()) == claim
