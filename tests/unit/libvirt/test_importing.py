"""A domain XML as a vm.toml, and what that cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from kvmhooks.cli.main import main
from kvmhooks.errors import InputError
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.devices.graphics import Graphics
from kvmhooks.placement import plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.spec import load_vm
from kvmhooks.spec.device import device_class
from kvmhooks.spec.forms import Priority, Weight
from kvmhooks.spec.tuning import Io, IoDevice, Threads, policy_of
from kvmhooks.values import ByteSize, PciAddress
from tests.golden.cases import golden_host, golden_plan, golden_vm

DESKTOP = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>my desktop</name>
  <uuid>C7A5FDBD-EDAF-9455-926A-D65C16DB1809</uuid>
  <memory unit='GB'>4</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='auto' cpuset='0-3' current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type><boot dev='hd'/><boot dev='cdrom'/></os>
  <cpu mode='host-model'><feature policy='optional' name='vmx'/></cpu>
  <clock offset='localtime'/>
  <devices>
    <emulator>/usr/bin/kvm</emulator>
    <disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda' bus='sata'/></disk>
    <disk type='block'><source dev='/dev/sdb'/><target dev='vda' bus='virtio'/></disk>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/>
      <mac address='52:54:00:AA:00:01'/><alias name='net1'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></interface>
    <graphics type='vnc' passwd='hunter2'/>
  </devices>
  <qemu:commandline><qemu:arg value='-secret'/></qemu:commandline>
</domain>
"""

TOML = """name = "my-desktop"
uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"

[machine]
accel = "kvm"
emulator = "/usr/bin/kvm"

[cpu]
vcpus = 2
current = 1
model = "host"

[memory]
size = "3815MiB"

[[disk]]
path = "/a.iso"
device = "cdrom"
bus = "sata"
cache = "writeback"
discard = false

[[disk]]
path = "/dev/sdb"
cache = "writeback"
discard = false

[[net]]
type = "bridge"
device = "br0"
mac = "52:54:00:aa:00:01"

[console]
type = "none"

[clock]
offset = "localtime"
hpet = true

[graphics]
type = "vnc"
"""

UNEXPRESSED = [
    "name",
    "os/type@machine",
    "cpu@mode",
    "qemu:commandline",
    "currentMemory",
    "memory",
    "devices/interface[1]",
    "os/boot[2]",
    "cpu/feature",
    "devices/graphics@passwd",
]


def test_a_desktop_becomes_a_vm_and_a_list() -> None:
    """All that vm.toml has words for is in it; every other thing is named, secrets never."""
    read = read_domain(DESKTOP, "desktop.xml")
    assert read.toml == TOML
    assert [left.at for left in read.unexpressed] == UNEXPRESSED
    assert [left.at for left in read.decided] == [
        "os/boot",
        "vcpu@cpuset",
        "devices/disk[1]/target@dev",
        "devices/disk[2]/target@dev",
        "devices/interface/alias",
        "devices/interface/address",
    ]
    assert not {"hunter2", "-secret"} & set(str(read.unexpressed).split("'"))


def test_the_verb_writes_a_file_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``import -o`` writes what ``load_vm`` reads, says what is missing, overwrites nothing."""
    domain, vm = tmp_path / "d.xml", tmp_path / "vm.toml"
    domain.write_text(DESKTOP)
    assert main(["import", str(domain), "-o", str(vm)]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "not expressed: devices/graphics@passwd: vm.toml has no word for it" in output.err
    assert load_vm(vm) == read_domain(DESKTOP).spec
    assert main(["import", str(domain), "-o", str(vm)]) == 1
    assert capsys.readouterr().err == f"{vm}: File exists\n"
    assert vm.read_text() == TOML


def test_what_the_spec_refuses_is_told_and_left_out() -> None:
    """A value beyond vm.toml's range costs its key, or its table, and not the whole import."""
    domain = """<domain type='kvm'><name>a</name><memory unit='GiB'>1</memory><devices>
    <graphics type='vnc' port='80' autoport='no'/>
    <disk type='file'><driver name='qemu' type='raw' queues='0'/><source file='/a'/>
    <target dev='vda' bus='virtio'/></disk></devices></domain>"""
    read = read_domain(domain)
    assert [str(left) for left in read.unexpressed] == [
        "disk[0].queues: found 0: a whole number from 1 to 65536",
        "graphics.port: found 80: a whole number from 5900 to 65535",
    ]
    assert (len(read.spec.disk), read.spec.graphics) == (1, Graphics(type="vnc"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("<network/>", "vm.xml: found <network>, expected <domain>"),
        ("<domain type='xen'/>", '@type: found \'xen\', expected "kvm" or "qemu"'),
        (
            "<domain type='kvm'><os><type arch='aarch64'>hvm</type></os></domain>",
            "os/type@arch: found 'aarch64', expected \"x86_64\"",
        ),
        ("<domain type='kvm'><vcpu>two</vcpu></domain>", "vcpu: found 'two', expected a whole"),
        (
            "<domain type='kvm'><cputune><vcpupin vcpu='0' cpuset='x'/></cputune></domain>",
            "cputune/vcpupin@cpuset: found 'x', expected",
        ),
        (
            "<domain type='kvm'><memory unit='pages'>4</memory></domain>",
            "memory: found '4 pages', expected a number with a unit",
        ),
        (
            (
                "<domain type='kvm'><memoryBacking><hugepages>"
                "<page size='1' unit='GiB' nodeset='1'/></hugepages></memoryBacking><cpu><numa>"
                "<cell memory='256' unit='MiB'/><cell memory='768' unit='MiB'/></numa></cpu>"
                "</domain>"
            ),
            "memoryBacking/hugepages: found pages of 1GiB for cell 1, which is 768MiB, expected",
        ),
    ],
)
def test_what_is_no_vm_of_ours_is_refused(document: str, message: str) -> None:
    """Other hypervisors, other architectures and numbers that are none: one message each."""
    with pytest.raises(InputError) as caught:
        read_domain(document, "vm.xml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pages", "size", "words"),
    [
        ("<page size='2' unit='MiB'/>", "2MiB", []),
        ("<page size='2' unit='MiB' nodeset='0-1'/>", "2MiB", []),
        ("<page size='2048' nodeset='0'/><page size='2' unit='MiB' nodeset='1'/>", "2MiB", []),
        ("<page size='2048' nodeset='0'/>", None, ["cell 0: 2MiB, cell 1: ordinary"]),
        ("<page size='2048'/><page size='1048576' nodeset='1'/>", None, ["cell 1: 1GiB"]),
        ("<page size='16' unit='GiB' nodeset='7'/>", None, ["memoryBacking/hugepages"]),
    ],
)
def test_pages_are_those_of_each_cell(pages: str, size: str | None, words: list[str]) -> None:
    """Pages of one size in all cells have a word; what is left out is told."""
    read = read_domain(
        "<domain type='kvm'><name>a</name><vcpu>2</vcpu><memory unit='GiB'>2</memory>"
        f"<memoryBacking><hugepages>{pages}</hugepages></memoryBacking>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='host-passthrough'><numa>"
        "<cell cpus='0' memory='1048576'/><cell cpus='1' memory='1048576'/></numa></cpu></domain>"
    )
    assert read.spec.memory.hugepages == (ByteSize.parse(size) if size else False)
    told = [str(left) for left in read.unexpressed if "hugepages" in str(left)]
    assert len(told) == len(words)
    assert all(word in text for word, text in zip(words, told, strict=True))


BARE = """<domain type='kvm'><name>a</name><memory unit='MiB'>512</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>{os}</os>
<features><acpi/><apic/>{features}</features><clock offset='utc'/>
<devices>{devices}</devices>{rest}</domain>"""

WORDS = [
    (
        {
            "os": "<loader readonly='yes' secure='yes' type='pflash'>/code</loader>"
            "<nvram template='/template'>/vars</nvram><bootmenu enable='yes'/>",
            "features": "<smm state='on'/>",
        },
        "boot",
        {
            "firmware": "uefi",
            "code": Path("/code"),
            "variables": Path("/vars"),
            "template": Path("/template"),
            "secure_boot": True,
            "menu": True,
        },
    ),
    (
        {
            "devices": "<hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio'/>"
            "<source><address domain='0x0000' bus='0x65' slot='0x00' function='0x1'/></source>"
            "<rom bar='off' file='/rom'/></hostdev>"
            "<hostdev mode='subsystem' type='pci'>"
            "<source><address bus='0x66' slot='0x1f' function='0x0'/></source></hostdev>"
        },
        "pci",
        (
            {
                "address": PciAddress.parse("0000:65:00.1"),
                "managed": True,
                "rom": Path("/rom"),
                "rom_bar": False,
            },
            {"address": PciAddress.parse("0000:66:1f.0"), "managed": False},
        ),
    ),
    (
        {
            "devices": "<graphics type='vnc' port='5900' autoport='no'/>"
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci' display='on'>"
            "<source><address uuid='C2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>"
        },
        "mdev",
        ({"uuid": "c2177883-f1bb-47f0-914d-32a22e3a8804", "display": True},),
    ),
    (
        {
            "devices": "<sound model='ich9'><audio id='7'/></sound>"
            "<audio id='7' type='pulseaudio'/><audio id='1' type='none'/>"
        },
        "sound",
        {"model": "ich9", "backend": "pulseaudio"},
    ),
    (
        {
            "devices": "<shmem name='looking-glass'><model type='ivshmem-plain'/>"
            "<size unit='KiB'>65536</size></shmem>"
        },
        "shared_memory",
        {"size": ByteSize(64 << 20)},
    ),
    (
        {
            "devices": "<input type='evdev'><source dev='/dev/input/event3' grab='all' "
            "repeat='on'/></input>"
        },
        "input",
        ({"type": "evdev", "path": Path("/dev/input/event3")},),
    ),
    (
        {"devices": "<video><model type='bochs' heads='1' primary='yes'/></video>"},
        "graphics",
        {"video": "bochs"},
    ),
    (
        {"rest": "<maxMemory slots='4' unit='GiB'>2</maxMemory>"},
        "memory",
        {"size": ByteSize(512 << 20), "maximum": ByteSize(2 << 30), "slots": 4},
    ),
    (
        {
            "os": "<kernel>/k</kernel>",
            "rest": "<launchSecurity type='sev' kernelHashes='yes'><cbitpos>47</cbitpos>"
            "<reducedPhysBits>1</reducedPhysBits><policy>0x0007</policy></launchSecurity>",
        },
        "security",
        {
            "type": "sev-es",
            "policy": "0x7",
            "kernel_hashes": True,
            "cbitpos": 47,
            "reduced_phys_bits": 1,
        },
    ),
    (
        {
            "rest": "<cputune><vcpusched vcpus='0-1' scheduler='fifo' priority='3'/>"
            "<emulatorsched scheduler='batch'/></cputune>"
        },
        "tuning",
        {
            "vcpus": Threads(scheduler="fifo", priority=Priority(3)),
            "emulator": Threads(scheduler="batch"),
        },
    ),
    (
        {
            "rest": "<metadata><kvmhooks:vm xmlns:kvmhooks='urn:kvmhooks:1'>"
            "<kvmhooks:threads vcpus='rr:3'/></kvmhooks:vm></metadata>"
        },
        "tuning",
        {"vcpus": Threads(scheduler="rr", priority=Priority(3))},
    ),
    (
        {
            "rest": "<blkiotune><weight>200</weight><device><path>/dev/sda</path>"
            "<read_bytes_sec>1048576</read_bytes_sec></device></blkiotune>"
        },
        "tuning",
        {
            "io": Io(
                weight=Weight(200),
                device=(IoDevice(path=Path("/dev/sda"), read_bytes=ByteSize(1 << 20)),),
            )
        },
    ),
]


@pytest.mark.parametrize(("attributes", "table", "expected"), WORDS, ids=range(len(WORDS)))
def test_what_a_domain_says_has_its_word(
    attributes: dict[str, str], table: str, expected: Any
) -> None:
    """Firmware, devices of the host, sound, encryption and scheduling are said as vm.toml says
    them, and all else of the table is as by default."""
    places = dict.fromkeys(("os", "features", "devices", "rest"), "")
    plain = read_domain(BARE.format(**places))
    read = read_domain(BARE.format(**{**places, **attributes}))
    told = {left.at for left in read.unexpressed} - {left.at for left in plain.unexpressed}
    assert told <= {"devices/audio[2]"}
    found = getattr(read.spec, table)
    if isinstance(expected, tuple):
        assert found == tuple(
            type(item)(**words) for item, words in zip(found, expected, strict=True)
        )
    else:
        default = getattr(plain.spec, table) or device_class(table)()
        assert found == attrs.evolve(default, **expected)


def test_settings_that_are_none_are_told() -> None:
    """A word that the table has not, a wrong value, and one that would do nothing here."""
    policy = (
        "<kvmhooks:memory ksm='7' thp='never' ksn='1'/><kvmhooks:power governor='performance'/>"
        "<kvmhooks:color red='1'/>"
    )
    vm = f"<kvmhooks:vm xmlns:kvmhooks='urn:kvmhooks:1'>{policy}</kvmhooks:vm>"
    rest = f"<metadata>{vm}</metadata>"
    read = read_domain(BARE.format(os="", features="", devices="", rest=rest))
    assert policy_of(read.spec) == {"memory.thp": "never"}
    told = {left.at.rpartition("/")[2]: left.why for left in read.unexpressed}
    assert told.keys() >= {"kvmhooks:memory@ksm", "kvmhooks:memory@ksn", "kvmhooks:color"}
    assert "policy.power.governor" in told


def test_a_class_of_some_vcpus_has_no_word() -> None:
    """vm.toml has one for all of them: what cannot be said is told."""
    rest = "<cputune><vcpusched vcpus='1' scheduler='fifo' priority='3'/></cputune>"
    read = read_domain(BARE.format(os="", features="", devices="", rest=rest))
    assert "cputune/vcpusched" in {left.at for left in read.unexpressed}
    assert read.spec.tuning.vcpus == Threads()


def test_memory_that_is_added_is_read_back() -> None:
    """DIMMs and virtio-mem, each with its cell: whoever tunes the VM counts them as its own."""
    read = read_domain(domain_xml(golden_plan("growing", "server")))
    known = golden_vm("growing").memory
    assert (read.spec.memory.dimm, read.spec.memory.virtio) == (known.dimm, known.virtio)
    assert not [left for left in read.unexpressed if "devices/memory" in left.at]
    assert of_plan(plan(read.spec, golden_host("server"))).memory == (
        of_plan(golden_plan("growing", "server")).memory
    )


PAGES = "<memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages></memoryBacking>"
ADDED = "<source>{page}</source><target><size unit='KiB'>{kib}</size><node>0</node>{more}</target>"
UNKNOWN = {
    ("dimm", "", 4096, ""): "",
    ("dimm", "", 4095, ""): "sizes of whole multiples of 2MiB are known",
    ("dimm", "<pagesize unit='MiB'>2</pagesize>", 4096, ""): "what is added is of ordinary pages",
    ("virtio-mem", "", 4096, "<block unit='KiB'>2048</block>"): "",
    ("virtio-mem", "", 4096, "<block unit='KiB'>3072</block>"): "blocks of a power of two",
    ("virtio-mem", "", 6144, "<block unit='KiB'>4096</block>"): "sizes of whole blocks are known",
    ("nvdimm", "", 4096, ""): "vm.toml has no word for it",
}


@pytest.mark.parametrize("device", UNKNOWN)
def test_memory_that_vm_toml_has_no_word_for_is_told(device: tuple[str, str, int, str]) -> None:
    """With why; on huge pages what is added has to say that it is of ordinary ones."""
    model, page, kib, more = device
    added = ADDED.format(page=page, kib=kib, more=more)
    text = DESKTOP.replace("<clock", "<maxMemory slots='4' unit='GiB'>9</maxMemory><clock")
    text = text.replace("<devices>", f"<devices><memory model='{model}'>{added}</memory>")
    for backing in ("", PAGES):
        read = read_domain(text.replace("<clock", f"{backing}<clock"))
        told = [left.why for left in read.unexpressed if left.at.startswith("devices/memory")]
        assert len(read.spec.memory.dimm + read.spec.memory.virtio) == 1 - len(told)
        if backing and model != "nvdimm":
            assert told == ["what is added is of ordinary pages"]
        else:
            assert [why for why in told if UNKNOWN[device] not in why] == []
            assert len(told) == bool(UNKNOWN[device])
