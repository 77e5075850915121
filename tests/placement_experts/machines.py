"""The hosts of the table as trees: captured ones with devices put in, and described ones.

A captured tree stands in ``../shared`` beside the checkout, or where ``KVMHOOKS_SHARED`` says, as
those of ``tests/corpora`` do.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

from tests.fakedevices import FakePci, write_devices
from tests.fakehost import CPU, FakeHost, Thread, Writer

SHARED = Path(os.environ.get("KVMHOOKS_SHARED", Path(__file__).parents[3] / "shared"))


@dataclass(frozen=True)
class Cores:
    """Cores of one kind in one place, as a host's table has them under ``cores``."""

    count: int
    first: tuple[int, ...]
    """The numbers of the first core's threads."""
    step: int = 1
    """From one core's first thread to the next one's."""
    package: int = 0
    node: int = 0
    l3: int | None = None
    """The number of their L3; None: they have none."""
    l3_kib: int = 0
    l2_cores: int = 1
    """The number of cores that share an L2."""
    l2_kib: int = 1024
    max_khz: int = 3_000_000
    efficient: bool = False

    @property
    def cpus(self) -> Iterator[tuple[int, int]]:
        """Yield each core's place among these and the number of each of its threads."""
        for core in range(self.count):
            for first in self.first:
                yield core, first + core * self.step


@dataclass(frozen=True)
class Machine(FakeHost):
    """A host whose cores differ."""

    groups: tuple[Cores, ...] = ()

    @cached_property
    def cpus(self) -> tuple[Thread, ...]:
        """All CPUs, lowest first."""
        made, cores = [], 0
        for group in self.groups:
            for core, cpu in group.cpus:
                made.append(
                    Thread(
                        id=cpu,
                        package=group.package,
                        die=group.package,
                        core=cores + core,
                        l2=cores + core // group.l2_cores,
                        l3=100 + cores if group.l3 is None else group.l3,
                        node=group.node,
                    )
                )
            cores += group.count
        return tuple(sorted(made, key=lambda thread: thread.id))

    def write(self, root: Path) -> None:
        """Make the tree below ``root``, then what a ``FakeHost`` has the same for all CPUs."""
        super().write(root)
        writer = Writer(root)
        for group in self.groups:
            for _, cpu in group.cpus:
                caches = f"{CPU}/cpu{cpu}/cache"
                writer.put(f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq", group.max_khz)
                writer.put(f"{caches}/index2/size", f"{group.l2_kib}K")
                if group.l3 is None:
                    rmtree(root / caches / "index3")
                else:
                    writer.put(f"{caches}/index3/size", f"{group.l3_kib}K")


def is_missing(described: Mapping[str, Any]) -> bool:
    """Return whether the captured tree that a host is made from is not here."""
    return "tree" in described and not (SHARED / described["tree"]).exists()


def write_machine(described: Mapping[str, Any], root: Path) -> Path:
    """Write the tree of a host as its table describes it, and give its root back."""
    pci = tuple(FakePci(**device) for device in described.get("pci", ()))
    if "tree" not in described:
        machine_of(described, pci).write(root)
        return root
    with tarfile.open(SHARED / described["tree"]) as archive:
        archive.extractall(root)  # noqa: S202 -- our own; Python 3.11.2 has no filters
    if (root / "root").is_dir():
        root /= "root"
    writer = Writer(root)
    write_devices(writer, FakeHost(pci=pci))
    for path, text in described.get("files", {}).items():
        writer.put(path, text)
    return root


def machine_of(described: Mapping[str, Any], pci: tuple[FakePci, ...]) -> Machine:
    """Return the host that a table describes by its groups of cores."""
    groups = tuple(
        Cores(**{**group, "first": tuple(group["first"])}) for group in described["cores"]
    )
    pools = {int(size): (total, total) for size, total in described["hugepages"].items()}
    efficient = sorted(cpu for group in groups if group.efficient for _, cpu in group.cpus)
    return Machine(
        groups=groups,
        packages=len({group.package for group in groups}),
        cores=sum(group.count for group in groups),
        nodes=len({group.node for group in groups}),
        memory_mib=described["memory_mib"],
        hugepages=pools,
        efficiency=",".join(map(str, efficient)),
        nohz_full=described.get("nohz_full"),
        cmdline=described.get("cmdline", "root=/dev/sda1"),
        kvm=described["kvm"],
        pci=pci,
        files=described.get("files", {}),
    )
