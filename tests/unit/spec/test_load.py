"""``vm.toml``: what is read, and what is said about each mistake."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest

from kvmhooks.errors import SpecError
from kvmhooks.spec import (
    Boot,
    Console,
    Cpu,
    Disk,
    Guest,
    Isolation,
    Machine,
    Memory,
    Net,
    VmSpec,
    load_vm,
    parse_vm,
)
from kvmhooks.spec.load import MAX_BYTES
from kvmhooks.spec.model import CpuFeature, CpuModel, InterfaceName, MacAddress, MachineType, VmName
from kvmhooks.spec.schema import descriptions, schema
from kvmhooks.spec.structure import Unsuitable, is_key, structure
from kvmhooks.values import ByteSize

LEAST = 'name = "a"\ncpu.vcpus = 4\nmemory.size = "1GiB"\n'
CPUS = 'name = "a"\nmemory.size = "1GiB"\n'
MEMORY = 'name = "a"\ncpu.vcpus = 4\n'
MIB = ByteSize.kib(1 << 10)

NAMES_OF_DEVICES = "address, id, net, block, iommu_group, sriov"
COUNT = "a whole number from 1 to 65536"
PATH = "a path"
NUMBER = "a whole number from 0 to 65536"
TEXT = "a text of one line"
NAMES = "one of " + ", ".join(each.name for each in attrs.fields(VmSpec) if is_key(each))
LINE = "a path of one line without control characters, in UTF-8"


def test_the_least_is_all_defaults() -> None:
    """A name, a number of vCPUs and a size of memory are enough."""
    assert parse_vm(LEAST, folder=Path("/vms")) == VmSpec(
        name=VmName("a"), cpu=Cpu(vcpus=4), memory=Memory(size=ByteSize.parse("1GiB"))
    )


def test_everything_that_can_be_said() -> None:
    """Every table and key is read into its field, relative paths against the file's folder."""
    text = """
name = "web.1"
uuid = "6f5e6d5c-4b3a-4291-8807-f6e5d4c3b2a1"
machine = { type = "pc-q35-7.2", accel = "kvm", emulator = "../bin/qemu" }
boot = { firmware = "/rom", kernel = "k", initrd = "./i", cmdline = "quiet" }
console = { type = "virtio" }
guest.report = true
isolation = { exclusive = true, strict = true }

[cpu]
vcpus = 8
placement = "dedicated"
model = "EPYC-v4"
features = ["+invtsc", "-pmu"]
sockets = 1
dies = 2
cores = 2
threads = 2

[memory]
size = "8 MiB"
cells = 2
hugepages = "2MiB"

[[disk]]
path = "/dev/vg/a"
format = "raw"
iothread = 1
queues = 2
cache = "unsafe"
readonly = true

[[disk]]
path = "a.qcow2"
format = "qcow2"

[[net]]
type = "bridge"
device = "br0"
mac = "52:54:00:00:00:01"
"""
    spec = parse_vm(text, folder=Path("/vms/web"), source="web.toml")
    assert spec == VmSpec(
        name=VmName("web.1"),
        uuid="6f5e6d5c-4b3a-4291-8807-f6e5d4c3b2a1",  # type: ignore[arg-type]
        machine=Machine(
            type=MachineType("pc-q35-7.2"), accel="kvm", emulator=Path("/vms/bin/qemu")
        ),
        boot=Boot(
            firmware=Path("/rom"),
            kernel=Path("/vms/web/k"),
            initrd=Path("/vms/web/i"),
            cmdline="quiet",
        ),
        cpu=Cpu(
            vcpus=8,
            placement="dedicated",
            model=CpuModel("EPYC-v4"),
            features=(CpuFeature("+invtsc"), CpuFeature("-pmu")),
            sockets=1,
            dies=2,
            cores=2,
            threads=2,
        ),
        memory=Memory(size=ByteSize(8 * MIB), cells=2, hugepages=ByteSize(2 * MIB)),
        disk=(
            Disk(
                path=Path("/dev/vg/a"),
                format="raw",
                iothread=1,
                queues=2,
                cache="unsafe",
                readonly=True,
            ),
            Disk(path=Path("/vms/web/a.qcow2"), format="qcow2"),
        ),
        net=(Net(type="bridge", device=InterfaceName("br0"), mac=MacAddress("52:54:00:00:00:01")),),
        console=Console(type="virtio"),
        guest=Guest(report=True),
        isolation=Isolation(exclusive=True, strict=True),
    )
    assert spec.source == "web.toml"
    assert [disk.is_block_device for disk in spec.disk] == [True, False]


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    """Paths are relative to the file's real folder, and messages name it as it was given."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/web.toml").write_text(LEAST + '[[disk]]\npath = "a.img"\n')
    spec = load_vm(tmp_path / "link/web.toml")
    assert (spec.source, spec.disk[0].path) == (
        f"{tmp_path}/link/web.toml",
        tmp_path.resolve() / "real/a.img",
    )


MISTAKES = [
    # a whole document: what is said about it, line by line, without the file's name
    ("name = ", "found Invalid value (at end of document), expected TOML"),
    ("a = 1\na = 2", "found Cannot overwrite a value (at end of document), expected TOML"),
    (
        "",
        (
            "name: found nothing, expected a value: this key must be there\n"
            "cpu: found nothing, expected a value: this key must be there\n"
            "memory: found nothing, expected a value: this key must be there"
        ),
    ),
    (
        LEAST + "colour = 1",
        (
            "colour: found an unknown key, expected one of name, uuid, profile, machine, boot, "
            "cpu, memory, clock, disk, net, nvme, pci, mdev, filesystem, channel, input, host_usb, "
            "usb, graphics, sound, vsock, rng, tpm, watchdog, panic, balloon, iommu, "
            "shared_memory, security, tuning, console, guest, shutdown, isolation, policy, run, "
            "image, helper, cloud_init"
        ),
    ),
    (
        LEAST + 'source = "x"',
        (
            "source: found an unknown key, expected one of name, uuid, profile, machine, boot, "
            "cpu, memory, clock, disk, net, nvme, pci, mdev, filesystem, channel, input, host_usb, "
            "usb, graphics, sound, vsock, rng, tpm, watchdog, panic, balloon, iommu, "
            "shared_memory, security, tuning, console, guest, shutdown, isolation, policy, run, "
            "image, helper, cloud_init"
        ),
    ),
    (LEAST + "disks = []", 'disks: found an unknown key, expected "disk"?'),
    (LEAST + "isolation.irqs = true",
     "isolation.irqs: found an unknown key, expected policy.isolation.irqs"),
    (LEAST + "policy.isolation.exclusive = true",
     "policy.isolation.exclusive: found an unknown key, expected isolation.exclusive"),
    (LEAST + "policy.isolation.siblings = 'idle'",
     "policy.isolation.siblings: found an unknown key, expected cpu.smt"),
    (LEAST + "policy.devices.managed = true",
     "policy.devices: found an unknown key, expected [[pci]] or [[mdev]]"),
    (LEAST + "policy.power.latency = 'x'",
     (
         "policy.power.latency: found 'x', expected microseconds, "
         'or "n/a" for no wake-up delay at all'
     )),
    (LEAST + "policy.power.governor = 'performance'",
     "policy.power.governor: found 'performance', expected isolation.exclusive = true"),
    (LEAST + "policy.memory.hugepages = 'keep'",
     "policy.memory.hugepages: found 'keep', expected memory.hugepages beside it"),
    (LEAST + "memory.hugepages = '2MiB'\nmemory.allocate = true\npolicy.memory.hugepages = 'keep'",
     'memory.allocate: found policy.memory.hugepages = "keep", expected one of the two'),
    (LEAST + "policy.threads.uclamp_min = 9\npolicy.threads.uclamp_max = 8",
     "policy.threads.uclamp_min: found 9, expected at most uclamp_max, 8"),
    (LEAST + "policy.storage.requests = 9",
     "policy.storage.requests: found 9, expected a disk of the host's, /dev/..., at disk[].path"),
    (
        LEAST + "cpu.vcpu = 2\ncpu.treads = 2",
        (
            'cpu.treads: found an unknown key, expected "threads"?\n'
            'cpu.vcpu: found an unknown key, expected "vcpus"?'
        ),
    ),
    (
        LEAST + '[[disk]]\npath = "a"\n[[disk]]\npath = "b"\nfromat = "raw"',
        'disk[1].fromat: found an unknown key, expected "format"?',
    ),
    (CPUS + 'cpu.vcpus = "4"', f"cpu.vcpus: found '4', expected {COUNT}"),
    (CPUS + "cpu.vcpus = 0", f"cpu.vcpus: found 0, expected {COUNT}"),
    (CPUS + "cpu.vcpus = -1", f"cpu.vcpus: found -1, expected {COUNT}"),
    (CPUS + "cpu.vcpus = 1.5", f"cpu.vcpus: found 1.5, expected {COUNT}"),
    (CPUS + "cpu.vcpus = true", f"cpu.vcpus: found true, expected {COUNT}"),
    (CPUS + "cpu.vcpus = 65537", f"cpu.vcpus: found 65537, expected {COUNT}"),
    (CPUS + "cpu = 4", "cpu: found 4, expected a table"),
    (CPUS + "cpu = []", "cpu: found an array, expected a table"),
    (
        MEMORY + "memory.size = 512",
        'memory.size: found 512, expected "512MiB" or "512GiB"; a bare number has no unit',
    ),
    (
        MEMORY + 'memory.size = "512"',
        'memory.size: found \'512\', expected "512MiB" or "512GiB"; a bare number has no unit',
    ),
    (MEMORY + 'memory.size = "1GB"', "memory.size: found '1GB', expected \"1GiB\""),
    (
        MEMORY + "memory.size = true",
        'memory.size: found true, expected a size such as "512MiB" or "4GiB"',
    ),
    (
        MEMORY + 'memory.size = "0MiB"',
        "memory.size: found '0KiB', expected whole multiples of 1MiB",
    ),
    (
        MEMORY + 'memory.size = "1GiB"\nmemory.cells = 3',
        "memory.size: found '1GiB', expected whole multiples of 1MiB for each of 3 cells",
    ),
    (
        MEMORY + 'memory.size = "3MiB"\nmemory.hugepages = "2MiB"',
        "memory.size: found '3MiB', expected whole multiples of 2MiB",
    ),
    (
        LEAST + 'memory.hugepages = "1GB"',
        'memory.hugepages: found \'1GB\', expected "2MiB", "1GiB", "auto" or false',
    ),
    (
        LEAST + "memory.hugepages = true",
        'memory.hugepages: found true, expected "2MiB", "1GiB", "auto" or false',
    ),
    (
        LEAST + "memory.hugepages = []",
        'memory.hugepages: found an array, expected "2MiB", "1GiB", "auto" or false',
    ),
    (
        LEAST + "memory.hugepages = {}",
        'memory.hugepages: found a table, expected "2MiB", "1GiB", "auto" or false',
    ),
    (
        LEAST + 'machine.accel = "xen"',
        'machine.accel: found \'xen\', expected "auto", "kvm" or "tcg"',
    ),
    (
        LEAST + 'machine.type = "pc"',
        'machine.type: found \'pc\', expected "q35", "microvm" or a version such as "pc-q35-7.2"',
    ),
    (LEAST + 'boot.kernel = "/"', "boot.kernel: found '/', expected the path of a file"),
    (LEAST + 'boot.kernel = "//"', "boot.kernel: found '//', expected the path of a file"),
    (LEAST + '[[disk]]\npath = "/a/.."', "disk[0].path: found '/', expected the path of a file"),
    (LEAST + 'boot.kernel = ""', f"boot.kernel: found '', expected {PATH}"),
    (LEAST + 'boot.kernel = "a\\u0000b"', f"boot.kernel: found 'a\\x00b', expected {LINE}"),
    (LEAST + "boot.firmware = 1", f"boot.firmware: found 1, expected {PATH}"),
    (
        LEAST + 'boot.kernel = "k"\nboot.cmdline = "a\\nb"',
        "boot.cmdline: found 'a\\nb', expected a text of one line",
    ),
    (
        LEAST + 'boot.initrd = "i"\nboot.cmdline = "quiet"',
        (
            "boot.initrd: found '/vms/i', expected boot.kernel beside it\n"
            "boot.cmdline: found 'quiet', expected boot.kernel beside it"
        ),
    ),
    (
        LEAST.replace('"a"', '"../a"'),
        (
            "name: found '../a', expected letters, digits and . _ + -, at most 63, the first a "
            "letter or digit"
        ),
    ),
    (
        LEAST.replace('"a"', f'"{"a" * 90}"'),
        (
            f"name: found '{'a' * 75}...', expected letters, digits and . _ + -, at most 63, the "
            "first a letter or digit"
        ),
    ),
    (LEAST + 'uuid = "ABC"', "uuid: found 'ABC', expected a UUID in lower case"),
    (
        LEAST + 'cpu.features = ["invtsc", "+ok"]',
        'cpu.features[0]: found \'invtsc\', expected "+name" or "-name"',
    ),
    (LEAST + 'cpu.features = "+pmu"', "cpu.features: found '+pmu', expected an array of texts"),
    (LEAST + 'disk = "a.img"', "disk: found 'a.img', expected an array of tables ([[...]])"),
    (LEAST + "disk = [1]", "disk[0]: found 1, expected a table"),
    (LEAST + "[[disk]]", "disk[0].path: found nothing, expected a value: this key must be there"),
    (
        LEAST + "[[disk]]\npath = 'a'\nreadonly = 1",
        "disk[0].readonly: found 1, expected true or false",
    ),
    (
        LEAST + "[[net]]\nmac = '01:00:5e:00:00:01'",
        (
            "net[0].mac: found '01:00:5e:00:00:01', expected a unicast MAC address in lower case "
            'such as "52:54:00:12:34:56"'
        ),
    ),
    (
        LEAST + "[[net]]\ntype = 'tap'\ndevice = 'a/b'",
        "net[0].device: found 'a/b', expected an interface's name of at most 15 characters",
    ),
    (
        LEAST + "[[net]]\ntype = 'tap'",
        'net[0].device: found nothing, expected the name of the tap: type is "tap"',
    ),
    (
        LEAST + "[[net]]\ndevice = 'tap0'",
        "net[0].device: found 'tap0', expected net[0].type = \"tap\", \"bridge\" or \"macvtap\"",
    ),
    (
        LEAST + "cpu.threads = 3",
        "cpu.vcpus: found 4, expected a multiple of 3: 3 threads",
    ),
    (
        LEAST + "cpu.sockets = 1\ncpu.cores = 1\ncpu.threads = 2",
        "cpu.vcpus: found 4, expected 2: 1 sockets x 1 cores x 2 threads",
    ),
    (
        LEAST + "isolation.exclusive = true",
        'isolation.exclusive: found true, expected cpu.placement = "dedicated"',
    ),
    (
        LEAST + "isolation.strict = 1\nguest.report = 'yes'",
        (
            "guest.report: found 'yes', expected true or false\n"
            "isolation.strict: found 1, expected true or false"
        ),
    ),
    (CPUS + "cpu.vcpus = " + "9" * 5000, None),
    ("a = " + "[" * 5000, None),
    (LEAST + "cpu.current = 0x" + "f" * 5000,
     f"cpu.current: found a number of hundreds of digits, expected {NUMBER}"),
    (LEAST + "boot.cmdline = 2026-01-02", "boot.cmdline: found 2026-01-02, expected " + TEXT),
    ("a" + ".a" * 250_000 + " = 1", "found a line with 250000 dots, expected at most 500"),
    ("[" + "a." * 250_000 + "a]", "found a line with 250000 dots, expected at most 500"),
    (LEAST + '"\\u001b[31m" = 1', "'\\x1b[31m': found an unknown key, expected " + NAMES),
    (LEAST + "[[disk]]\npath = '" + "a" * 5_000 + "'",
     "disk[0].path: found '/vms/" + "a" * 70 + "...', expected a path of at most 4095 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_told_with_its_place(text: str, message: str | None) -> None:
    """Each mistake is a line with the file, the place, what was found and what was expected."""
    with pytest.raises(SpecError) as raised:
        parse_vm(text, folder=Path("/vms"), source="web.toml")
    lines = str(raised.value).splitlines()
    if message is None:  # Python's own words, which differ by version
        assert len(lines) == 1
        assert lines[0].startswith("web.toml: found ")
        assert lines[0].endswith(", expected TOML")
    else:
        assert lines == [f"web.toml: {line}" for line in message.splitlines()]


def test_tables_are_nested_as_deep_as_somebody_likes() -> None:
    """A profile, too, looks no deeper than its keys."""
    text = LEAST + 'profile = "web"\n' + "[x" + ".x" * 499 + "]\n" + "x" + ".x" * 499 + " = 1"
    with pytest.raises(SpecError) as raised:
        parse_vm(text, folder=Path("/vms"))
    assert str(raised.value).startswith("vm.toml: x: found an unknown key, expected")


def test_a_hundred_mistakes_are_told() -> None:
    """One who has more has sent another file; all are counted, and all are in the error."""
    with pytest.raises(SpecError) as raised:
        parse_vm(LEAST + "[[disk]]\n" * 150, folder=Path("/vms"))
    lines = str(raised.value).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "vm.toml: and 50 more problems"
    assert len(raised.value.problems) == 150


@pytest.mark.parametrize("change", [
    lambda text: "\ufeff" + text,
    lambda text: text.replace("\n", "\r\n"),
], ids=["byte order mark", "CRLF"])  # fmt: skip
def test_other_editors_files_are_read(tmp_path: Path, change: Callable[[str], str]) -> None:
    """A byte order mark is none of the text, and lines may end as on Windows."""
    (tmp_path / "vm.toml").write_bytes(change(LEAST).encode())
    assert load_vm(tmp_path / "vm.toml") == parse_vm(LEAST, folder=tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, a folder, other bytes, and far too many are told as such."""
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    (tmp_path / "big.toml").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "folder.toml").mkdir()
    messages = {}
    for name in ("none.toml", "folder.toml", "latin.toml", "big.toml"):
        with pytest.raises(SpecError) as raised:
            load_vm(tmp_path / name)
        messages[name] = str(raised.value).removeprefix(f"{tmp_path}/")
        assert str(raised.value).startswith(f"{tmp_path}/")
    assert messages == {
        "none.toml": "none.toml: found No such file or directory, expected a readable file",
        "folder.toml": "folder.toml: found a directory, expected a regular file",
        "latin.toml": "latin.toml: found a byte that is not UTF-8 ('utf-8' codec can't decode byte "
        "0xe9 in position 8: invalid continuation byte), expected TOML",
        "big.toml": "big.toml: found more than 1048576 bytes, expected a VM's description",
    }


TEXTS = {
    "uuid": "6f5e6d5c-4b3a-4291-8807-f6e5d4c3b2a1",
    "mac": "52:54:00:00:00:01",
    "address": "0000:3b:00.0",
    "size": "1GiB",
    "vcpus": "0",
    "dedicated": "0",
    "nodes": "0-1",
    "type": "q35",
    "listen": "::1",
    "policy": "0x1",
    "id": "046d:c52b",
    "vhost": "0-1",
    "secret": "6f5e6d5c-4b3a-4291-8807-f6e5d4c3b2a1",
}


def _example(made: dict[str, Any], key: str = "") -> Any:
    """A value that a part of the schema allows."""
    if "properties" in made:
        return {name: _example(part, name) for name, part in made["properties"].items()}
    if "enum" in made:
        return made["enum"][0]
    if "anyOf" in made:
        return _example(made["anyOf"][0], key)
    if made["type"] == "array":
        return [_example(made["items"], key)]
    if made["type"] == "string":
        plain = TEXTS.get(key, "a")
        pattern = made.get("pattern", "")
        return next(
            each for each in (plain, "a", "1GiB", "+a", "0000:3b:00.0") if re.search(pattern, each)
        )
    return {"boolean": True, "integer": made.get("minimum")}[made["type"]]


def _forms(made: Any) -> Any:
    """Return a schema without its conditions, which are of several keys together."""
    if isinstance(made, list):
        return [_forms(item) for item in made]
    if not isinstance(made, dict):
        return made
    return {key: _forms(value) for key, value in made.items() if key != "allOf"}


FULL: dict[str, Any] = _example(schema())
ODD: tuple[Any, ...] = ("", "-", 0, 1, 1 << 40, 1.5, float("inf"), True, False, [], ["x"], [[]], {})


def test_the_schema_and_the_reader_agree_on_any_value() -> None:
    """With any odd value in any place, both accept or both refuse, and no place but its own."""
    validator = jsonschema.Draft202012Validator(_forms(schema()))
    disagreed = []
    for place in _places(FULL):
        for odd in ODD:
            needed = {"name", "cpu", "memory", place[0]}
            document = copy.deepcopy({key: FULL[key] for key in FULL if key in needed})
            _put(document, place, odd)
            if _is_accepted(document) != validator.is_valid(document):
                disagreed.append((place, odd))
    assert disagreed == []


def test_the_schema_describes_every_key() -> None:
    """Each key of the file has a description, which is what stands after its field."""
    told = descriptions("kvmhooks.spec.model")
    properties = schema()["properties"]
    assert set(properties) == {field.name for field in attrs.fields(VmSpec) if is_key(field)}
    assert properties["name"]["description"] == told["VmSpec", "name"]
    assert set(properties["cpu"]["properties"]) == {field.name for field in attrs.fields(Cpu)}
    assert schema()["required"] == ["name", "cpu", "memory"]
    assert schema()["additionalProperties"] is False


def test_a_description_has_no_blanks_of_the_source() -> None:
    """Neither the indentation of its lines nor a line of its own for what closes it."""
    texts = [*_descriptions(schema())]
    assert len(texts) > 100
    assert [text for text in texts if text != inspect.cleandoc(text)] == []


def _descriptions(table: Any) -> Iterator[str]:
    if isinstance(table, dict):
        text = table.get("description")
        yield from [text] if isinstance(text, str) else []
        for value in table.values():
            yield from _descriptions(value)


def _is_accepted(document: dict[str, Any]) -> bool:
    try:
        structure(document, Path("/vms"))
    except Unsuitable:
        return False
    return True


def _places(value: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += [(key,), *((key, *rest) for rest in _places(inner))]
    return found


def _put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    *above, last = place
    for step in above:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", f"pci[0]: found none, expected one of {NAMES_OF_DEVICES}"),
        (
            'net = "enp3s0"\nblock = "nvme0n1"',
            f"pci[0]: found net and block, expected one of {NAMES_OF_DEVICES}",
        ),
        (
            'sriov.pf = "enp3s0"\nmanaged = false',
            "pci[0].managed: found false, expected true: the function is made and bound",
        ),
        (
            'net = "enp3s0"\nmanaged = false\nallow = ["route"]',
            (
                "pci[0].allow: found an array, expected pci[0].managed = true: else nobody looks "
                "at the uses of it"
            ),
        ),
        (
            'sriov = {pf = "enp3s0", vf = "any"}',
            "pci[0].sriov.vf: found 'any', expected \"auto\" or a whole number from 0 to 65536",
        ),
        ('net = "enp3s0"\nindex = 1', "pci[0].index: found 1, expected pci[0].id beside it"),
    ],
)
def test_a_device_has_one_name(table: str, message: str) -> None:
    """None says nothing, two could mean two devices."""
    with pytest.raises(SpecError) as caught:
        parse_vm(f"{LEAST}[[pci]]\n{table}", folder=Path("/vms"))
    assert [str(problem) for problem in caught.value.problems] == [message]
