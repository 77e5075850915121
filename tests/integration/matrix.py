"""VMs to ask QEMU about: every shape of topology, memory and devices that this machine can hold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kvmhooks.host import Host, read
from kvmhooks.placement import Plan, plan
from kvmhooks.spec import parse_vm
from tests.fakehost import write_host

CPUS: Final = (
    ("vcpus = 1", 1),
    ("vcpus = 2", 2),
    ("vcpus = 4\nthreads = 2", 2),
    ('vcpus = 4\nplacement = "dedicated"', 2),
    ("vcpus = 6\nsockets = 3", 6),
    ("vcpus = 8\nsockets = 2\ncores = 2\nthreads = 2", 4),
    ("vcpus = 8\ndies = 2\nthreads = 2", 4),
    ('vcpus = 12\nsockets = 2\nplacement = "dedicated"', 6),
    ("vcpus = 16\nsockets = 2\ndies = 2\ncores = 2\nthreads = 2", 8),
    ('vcpus = 3\nmodel = "Nehalem"', 3),
    ('vcpus = 2\nmodel = "max"\nfeatures = ["-x2apic"]', 2),
    ('vcpus = 24\nplacement = "shared"', 24),
)
"""Each with its number of guest cores, which cells are dealt out of."""
MEMORY: Final = (
    'size = "64MiB"',
    'size = "96MiB"\ncells = 1',
    'size = "128MiB"\ncells = 2',
    'size = "192MiB"\ncells = 3',
    'size = "256MiB"\ncells = 4',
)
_RAW: Final = '[[disk]]\npath = "a.raw"\n'
_QCOW2: Final = '[[disk]]\npath = "b.qcow2"\nformat = "qcow2"\n'
DEVICES: Final = (
    "",
    f"{_RAW}[[net]]",
    (
        f"{_RAW}iothread = 1\nqueues = 4\n{_QCOW2}cache = 'writeback'\niothread = 1\n"
        "[console]\ntype = 'virtio'"
    ),
    (
        f"{_QCOW2}readonly = true\ncache = 'unsafe'\n[[net]]\n[[net]]\nmac = '52:54:00:01:02:03'\n"
        "[console]\ntype = 'none'"
    ),
    "".join(f"[[disk]]\npath = '{at}.raw'\niothread = {at % 3 + 1}\n" for at in range(10)),
)


@cache
def host() -> Host:
    """A host with one node, as this machine: another's memory cannot be bound to here."""
    described: dict[str, Any] = {"cores": 16, "threads": 2, "kvm": None, "memory_mib": 65_536}
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), **described))


def vms(count: int) -> Iterator[tuple[str, str]]:
    """So many descriptions, each with its name; all CPUs meet all memories that fit, in turn."""
    memories, devices = cycle(MEMORY), cycle(DEVICES)
    for made, (cpu, cores) in zip(range(count), cycle(CPUS), strict=False):
        memory = next(memories)
        while cores % int(memory.partition("cells = ")[2] or 1):
            memory = next(memories)
        name = f"matrix{made}"
        yield name, f'name = "{name}"\n[cpu]\n{cpu}\n[memory]\n{memory}\n{next(devices)}\n'


def planned(text: str, folder: Path, emulator: Path) -> Plan:
    """The plan of one, for TCG."""
    machine = f'[machine]\naccel = "tcg"\nemulator = "{emulator}"\n'
    head, mark, rest = text.partition("[cpu]\n")
    return plan(parse_vm(head + machine + mark + rest, folder=folder), host())
