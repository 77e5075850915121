"""The forms of values: texts that follow a pattern, numbers that lie in a range."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, NewType

from kvmhooks.policy import SETTINGS, Setting
from kvmhooks.values import ByteSize

VmName = NewType("VmName", str)
"""A name that is fit to be a file's name and a libvirt domain's."""
Uuid = NewType("Uuid", str)
MacAddress = NewType("MacAddress", str)
InterfaceName = NewType("InterfaceName", str)
"""A network interface of the host: at most 15 bytes (``IFNAMSIZ`` - 1, linux/if.h), of the letters
that libvirt's schema has (deviceName, basictypes.rng)."""
CpuFeature = NewType("CpuFeature", str)
"""A CPU feature, by QEMU's name for it, to add (``+``) or to take away (``-``)."""
CpuModel = NewType("CpuModel", str)
"""``host``, ``max`` or one of QEMU's named models (``qemu-system-x86_64 -cpu help``)."""
MachineType = NewType("MachineType", str)
UserName = NewType("UserName", str)
Tag = NewType("Tag", str)
"""The name of a shared folder in the guest: at most 36 bytes (linux/virtio_fs.h)."""
SharedName = NewType("SharedName", str)
"""A file in ``/dev/shm``."""
Serial = NewType("Serial", str)
"""A disk's serial number: at most 20 bytes (``VIRTIO_BLK_ID_BYTES``, linux/virtio_blk.h)."""
Hexadecimal = NewType("Hexadecimal", str)
IpAddress = NewType("IpAddress", str)
UsbId = NewType("UsbId", str)
PciId = NewType("PciId", str)
PhysicalName = NewType("PhysicalName", str)
MdevName = NewType("MdevName", str)
"""A type of mediated devices, as in ``mdev_supported_types``."""
BlockName = NewType("BlockName", str)
"""A block device of the host, as in ``/sys/block``."""

_SETTING_TEXTS: Final[dict[Any, tuple[str, str]]] = {}
_SETTING_NUMBERS: Final[dict[Any, tuple[int, int]]] = {}
MIXED: Final[dict[Any, tuple[tuple[int, int], tuple[str, ...], str]]] = {}
"""The types that are numbers or one of some words, with what is expected."""

_CHOICE: Final = re.compile(r"[a-z]+(\|[a-z]+)+")


def _type_of(name: str, setting: Setting) -> Any:
    """Return the type that a setting's values have in TOML."""
    if setting.is_switch:
        return bool
    if setting.numbers is None and _CHOICE.fullmatch(setting.texts):
        return Literal[tuple(setting.texts.split("|"))]
    if setting.numbers is None:
        text = NewType(name, str)  # type: ignore[misc]  # made of the table
        _SETTING_TEXTS[text] = setting.texts, setting.expected
        return text
    number = NewType(name, int)  # type: ignore[misc]  # made of the table
    _SETTING_NUMBERS[number] = setting.numbers
    if not setting.texts:
        return number
    words = tuple(setting.texts.split("|"))
    mixed = Literal[words] | number  # type: ignore[valid-type]  # made of the table
    MIXED[mixed] = setting.numbers, words, setting.expected
    return mixed


SETTING_TYPES: Final = {
    name: _type_of(name, setting) for name, setting in SETTINGS.items() if not setting.word
}
"""The types of the settings of the host that vm.toml has below ``policy``."""

TEXT_FORMS: Final[dict[Any, tuple[str, str]]] = {
    VmName: (
        r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}",
        "letters, digits and . _ + -, at most 63, the first a letter or digit",
    ),
    Uuid: (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a UUID in lower case"),
    MacAddress: (
        r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}",
        'a unicast MAC address in lower case such as "52:54:00:12:34:56"',
    ),
    InterfaceName: (r"[A-Za-z0-9_.-]{1,15}", "an interface's name of at most 15 characters"),
    CpuFeature: (r"[+-][a-z0-9][a-z0-9._-]*", '"+name" or "-name"'),
    CpuModel: (r"[A-Za-z0-9][A-Za-z0-9_.-]*", '"host", "max" or a model of QEMU'),
    MachineType: (
        r"q35|microvm|pc-q35-[0-9]+[.][0-9]+",
        '"q35", "microvm" or a version such as "pc-q35-7.2"',
    ),
    UserName: (r"[a-z_][a-z0-9_-]{0,31}", "the name of a user of the host"),
    Tag: (r"[A-Za-z0-9_.-]{1,36}", "letters, digits and . _ -, at most 36"),
    SharedName: (
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
        "letters, digits and . _ -, at most 63, the first a letter or digit",
    ),
    Serial: (r"[A-Za-z0-9_.+-]{1,20}", "letters, digits and . _ + -, at most 20"),
    Hexadecimal: (r"0x[0-9a-f]{1,16}", 'a number such as "0x30000"'),
    IpAddress: (r"[0-9a-f.:]{2,45}", 'an IP address such as "127.0.0.1"'),
    PciId: (r"[0-9a-f]{4}:[0-9a-f]{4}", 'vendor and device such as "10de:2204"'),
    PhysicalName: (
        r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]|[A-Za-z0-9_.-]{1,15}",
        'a PCI address such as "0000:3b:00.0", or the name of a network interface',
    ),
    MdevName: (r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", 'a type such as "nvidia-35"'),
    BlockName: (r"[a-z][A-Za-z0-9_-]{0,30}", 'a disk such as "nvme1n1"'),
    UsbId: (r"[0-9a-f]{4}:[0-9a-f]{4}", 'vendor and product such as "046d:c52b"'),
    **_SETTING_TEXTS,
}
"""The texts that have a form: its pattern, and what is said where a text has another."""

MAX_COUNT: Final = 65_536
"""More vCPUs, iothreads or queues than any QEMU has."""

Hertz = NewType("Hertz", int)
Cid = NewType("Cid", int)
"""A vsock address: 0 to 2 are taken, the highest means any (linux/vm_sockets.h)."""
Shares = NewType("Shares", int)
"""A weight as cgroup v1 takes it in ``cpu.shares``, v2 in ``cpu.weight`` (there up to 10,000)."""
Microseconds = NewType("Microseconds", int)
"""A period or quota of the CPU bandwidth controller: from 1 ms on."""
Priority = NewType("Priority", int)
"""Of ``SCHED_FIFO`` and ``SCHED_RR`` (sched(7))."""
Weight = NewType("Weight", int)
"""Of block I/O (``io.weight``)."""
Percentage = NewType("Percentage", int)
"""From 1 to 100."""
Number = NewType("Number", int)
"""A whole number that may be 0: other counts start at 1."""
Rate = NewType("Rate", int)
"""Operations in a second."""
Megabits = NewType("Megabits", int)
"""In a second."""
VlanId = NewType("VlanId", int)
CellId = NewType("CellId", int)
"""A guest NUMA cell."""
Port = NewType("Port", int)

RANGES: Final[dict[Any, tuple[int, int]]] = {
    int: (1, MAX_COUNT),
    Hertz: (1_000_000, 100_000_000_000),
    Cid: (3, 4_294_967_294),
    Shares: (2, 262_144),
    Microseconds: (1_000, 17_592_186_044_415),
    Priority: (1, 99),
    Weight: (1, 10_000),
    Percentage: (1, 100),
    Number: (0, MAX_COUNT),
    Rate: (1, 1_000_000_000),
    Megabits: (1, 1_000_000),
    VlanId: (1, 4_094),
    CellId: (0, 255),
    Port: (5_900, 65_535),
    **_SETTING_NUMBERS,
}
"""The numbers, and the lowest and the highest of each kind."""

VfChoice = Literal["auto"] | Number
"""The number of a virtual function, or the first that is free."""
HugePages = Literal[False, "auto"] | ByteSize
Firmware = Literal["bios", "uefi"] | Path
