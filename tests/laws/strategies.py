"""The values that the laws are tried on: descriptions of VMs, small hosts, and more."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.policy import SETTINGS, Setting
from kvmhooks.values import MAX_CPU, ByteSize, CpuSet, PciAddress
from tests.fakehost import FakeHost

members = st.frozensets(st.integers(0, 300), max_size=40) | st.frozensets(
    st.integers(0, MAX_CPU), max_size=6
)
"""Plain sets of CPU numbers: dense, and far apart."""

cpu_sets = members.map(CpuSet)

sizes = st.builds(
    lambda count, shift: ByteSize.kib(count << shift),
    st.integers(0, 5000),
    st.sampled_from([0, 10, 20, 30]),
)

pci_addresses = st.builds(
    PciAddress,
    st.integers(0, 3) | st.integers(0, (1 << 32) - 1),
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)

_LETTERS = string.ascii_letters + string.digits
_names = st.builds(
    str.__add__,
    st.sampled_from(_LETTERS),
    st.text(_LETTERS + "_.+-", max_size=62),
)
_interfaces = st.text(_LETTERS + "_.-", min_size=1, max_size=15)
_lines = st.text(  # by the names that Hypothesis 6.67 of Debian 12 has for it
    st.characters(blacklist_categories=["C", "Z"], whitelist_characters=" "), max_size=30
)
_paths = st.text(_LETTERS + "/._- ,=é", min_size=1, max_size=20).filter(
    lambda path: Path(os.path.normpath(Path("/vms", path))).name != ""
)
"""Of files, so not the root."""
_hex = st.text("0123456789abcdef", min_size=32, max_size=32)
_uuids = _hex.map(lambda h: f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}")
_macs = st.builds(
    lambda high, low: f"{high[0]}{low}:" + ":".join(high[at : at + 2] for at in range(1, 11, 2)),
    _hex,
    st.sampled_from("02468ace"),
)


def _table(
    required: dict[str, SearchStrategy[Any]] | None = None, **optional: SearchStrategy[Any]
) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required or {}, optional=optional)


@st.composite
def _cpu_tables(draw: st.DrawFn, placement: str | None) -> dict[str, Any]:
    keys = {
        level: draw(st.integers(1, 3))
        for level in draw(st.sets(st.sampled_from(["sockets", "dies", "cores", "threads"])))
    }
    least = math.prod(keys.values())
    is_complete = {"sockets", "cores", "threads"} <= keys.keys()
    vcpus = least if is_complete else least * draw(st.integers(1, 4))
    others = _table(
        model=st.sampled_from(["host", "max", "Nehalem", "EPYC"]),
        features=st.lists(st.sampled_from(["+invtsc", "-pmu", "+x2apic"]), max_size=3, unique=True),
    )
    table = {"vcpus": vcpus, **keys, **draw(others)}
    if placement is not None:
        table["placement"] = placement
    return table


@st.composite
def _memory_tables(draw: st.DrawFn) -> dict[str, Any]:
    table = draw(
        _table(cells=st.integers(1, 4), hugepages=st.sampled_from(["2MiB", "1GiB", False]))
    )
    unit = {"2MiB": 2, "1GiB": 1024, False: 1}[table.get("hugepages", False)]
    mebibytes = unit * table.get("cells", 1) * draw(st.integers(1, 300))
    space = draw(st.sampled_from(["", " "]))
    return {"size": f"{mebibytes}{space}MiB", **table}


def _boot_tables() -> SearchStrategy[dict[str, Any]]:
    firmware = st.just("bios") | _paths
    direct = _table({"kernel": _paths}, initrd=_paths, cmdline=_lines, firmware=firmware)
    return direct | _table(firmware=firmware)


_disks = _table(
    {"path": _paths},
    format=st.sampled_from(["raw", "qcow2"]),
    iothread=st.integers(1, 4),
    queues=st.integers(1, 8),
    cache=st.sampled_from(["none", "writeback", "writethrough", "unsafe"]),
    readonly=st.booleans(),
)

_nets = _table(type=st.just("user"), mac=_macs) | _table(
    {"type": st.sampled_from(["tap", "bridge"]), "device": _interfaces}, mac=_macs
)


_REPORTS = _table(report=st.booleans())


@st.composite
def vm_documents(
    draw: st.DrawFn,
    *,
    placement: tuple[str | None, ...] = (None, "shared", "dedicated"),
    accel: tuple[str, ...] = ("auto", "kvm", "tcg"),
) -> dict[str, Any]:
    """The content of any ``vm.toml`` that is right, as what TOML's parser gives."""
    placed = draw(st.sampled_from(placement))
    is_exclusive = placed == "dedicated" and draw(st.booleans())
    isolation = st.fixed_dictionaries(
        {"exclusive": st.just(is_exclusive)},
        optional={"strict": st.booleans() if is_exclusive else st.just(value=False)},
    )
    console = draw(st.sampled_from(["serial", "virtio", "none"]))
    return draw(
        _table(
            {"name": _names, "cpu": _cpu_tables(placed), "memory": _memory_tables()},
            uuid=_uuids,
            machine=_table(
                type=st.sampled_from(["q35", "pc-q35-7.2", "pc-q35-10.0"]),
                accel=st.sampled_from(accel),
                emulator=_paths,
            ),
            boot=_boot_tables(),
            disk=st.lists(_disks, max_size=10),
            net=st.lists(_nets, max_size=3),
            console=st.just({"type": console}),
            guest=_table(report=st.just(value=False)) if console == "none" else _REPORTS,
            isolation=isolation,
        )
    )


@st.composite
def placements(draw: st.DrawFn, *, placement: str, exclusive: bool | None = None) -> dict[str, Any]:
    """A right ``vm.toml`` that says nothing but what decides where the VM goes."""
    cells = draw(st.sampled_from([None, None, 1, 2]))
    threads = draw(st.sampled_from([None, None, 1, 2]))
    unit = draw(st.sampled_from([1, 2, 2, 1024]))
    cores = (cells or 1) * draw(st.integers(1, 4))
    memory: dict[str, Any] = {"size": f"{unit * (cells or 1) * draw(st.integers(1, 100))}MiB"}
    cpu: dict[str, Any] = {"placement": placement, "vcpus": cores * (threads or 1)}
    if unit > 1:
        memory["hugepages"] = {2: "2MiB", 1024: "1GiB"}[unit]
    if cells is not None:
        memory["cells"] = cells
    if threads is not None:
        cpu["threads"] = threads
    if placement == "dedicated":
        cpu["smt"] = draw(st.sampled_from(["share", "share", "require", "isolate"]))
    iothreads = draw(st.lists(st.integers(1, 3), max_size=2))
    return {
        "name": "vm",
        "cpu": cpu,
        "memory": memory,
        "disk": [{"path": "disk.img", "iothread": number} for number in iothreads],
        "isolation": {"exclusive": draw(st.booleans()) if exclusive is None else exclusive},
    }


def _described_hosts() -> list[FakeHost]:
    """Hosts from one CPU to 16: each number of packages, cores, threads and nodes with the others.

    The rest varies along, with periods that have no common factor.
    """
    shapes = [
        (packages, cores, threads, nodes)
        for packages, cores, threads in product((1, 2), (1, 2, 4), (1, 2))
        for nodes in range(min(3, packages * cores) + 1)
    ]
    return [
        FakeHost(
            packages=packages,
            cores=cores,
            threads=threads,
            nodes=nodes,
            numbering="adjacent" if at % 2 else "split",
            l3_cores=(None, 0, 2)[at % 3],
            memory_mib=(131_072, 131_072, 131_072, 66_392)[at % 4],
            hugepages={2048: (300, 0 if at % 5 == 4 else 300), 1_048_576: (64, 64)},
            offline=str(
                CpuSet.parse(("", "", "", "1", "2-3")[at % 5]) & _all_but_first(at, shapes)
            ),
            isolated=str(CpuSet.parse(("", "", "3", "1")[at % 4]) & _all_but_first(at, shapes)),
            kvm="intel" if at % 7 else None,
        )
        for at, (packages, cores, threads, nodes) in enumerate(shapes)
    ]


def _all_but_first(at: int, shapes: list[tuple[int, int, int, int]]) -> CpuSet:
    packages, cores, threads, _ = shapes[at]
    return CpuSet(range(1, packages * cores * threads))


_DESCRIBED = _described_hosts()


@cache
def _host(number: int) -> Host:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _DESCRIBED[number].write(root)
        return read(root)


hosts = st.integers(0, len(_DESCRIBED) - 1).map(_host)
"""Small hosts of every shape, each written as a tree and read back, once."""


@st.composite
def claims_on(draw: st.DrawFn, host: Host) -> tuple[Claim, ...]:
    """Draw what other VMs hold of a host: any of its CPUs."""
    online = sorted(host.online)
    return tuple(
        Claim(
            driver="qemu",
            uuid=f"{number:08x}-0000-0000-0000-000000000000",
            name=f"other{number}",
            exclusive=CpuSet(draw(st.frozensets(st.sampled_from(online), max_size=3))),
        )
        for number in range(draw(st.integers(0, 2)))
    )


def setting_values(setting: Setting) -> SearchStrategy[Any]:
    """Values of one setting, as TOML has them."""
    if setting.is_switch:
        return st.booleans()
    some: list[SearchStrategy[Any]] = []
    if setting.numbers is not None:
        some.append(st.integers(*setting.numbers))
    if setting.texts:
        some.append(st.from_regex(re.compile(setting.texts, re.ASCII), fullmatch=True))
    return st.one_of(some).filter(lambda value: not setting.repeated(str(value)))


def settings_tables(names: Iterable[str]) -> SearchStrategy[dict[str, dict[str, Any]]]:
    """Tables with some of these settings: of ``[policy]``, or of an administrator's file."""
    chosen = st.lists(st.sampled_from(sorted(names)), unique=True, max_size=8)

    def valued(some: list[str]) -> SearchStrategy[dict[str, dict[str, Any]]]:
        values = {name: setting_values(SETTINGS[name]) for name in some}
        return st.fixed_dictionaries(values).map(_in_tables)

    return chosen.flatmap(valued)


def _in_tables(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        group, _, key = name.partition(".")
        tables.setdefault(group, {})[key] = value
    return tables
