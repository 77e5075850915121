"""Captured trees of real machines against what hwloc, lscpu and libvirt say of them.

The trees are in ``../shared/corpora/hosts`` beside the checkout, or where ``KVMHOOKS_CORPORA``
says. Each comes with a ``truth.json``; facts about which its references disagree are not compared.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvmhooks.host import Host, read
from kvmhooks.values import CpuSet

CORPORA = Path(
    os.environ.get("KVMHOOKS_CORPORA", Path(__file__).parents[3] / "shared/corpora/hosts")
)
TRUTHS = sorted(CORPORA.glob("*.truth.json"))

pytestmark = pytest.mark.skipif(not TRUTHS, reason=f"no captured hosts in {CORPORA}")

Facts = dict[str, tuple[object, object]]
"""By name: what we say, what the reference says."""


@cache
def captured(name: str) -> Host:
    """One of the hosts, read once for all tests."""
    return read(CORPORA / f"{name}.root.tar.xz")


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Collect how many facts of each tree were compared, and print it at the end."""
    counts: Counter[str] = Counter()
    yield counts
    lines = [f"{name}: {count} facts" for name, count in sorted(counts.items())]
    lines.append(f"{len(counts)} hosts, {counts.total()} facts compared")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.name.removesuffix(".truth.json"))
def test_a_captured_host_is_what_its_references_say(path: Path, compared: Counter[str]) -> None:
    """CPUs, packages, cores, siblings, caches, nodes, memory, distances and kinds."""
    name = path.name.removesuffix(".truth.json")
    truth = json.loads(path.read_text())
    host = captured(name)
    facts: Facts = {}
    for reference, compare in (
        ("hwloc", compare_hwloc),
        ("lscpu", compare_lscpu),
        ("cpuinfo", compare_cpuinfo),
        ("libvirt_caps", compare_libvirt),
    ):
        if truth.get(reference):
            found = compare(host, truth[reference], truth)
            facts |= {f"{reference}: {fact}": both for fact, both in found.items()}
    disputed = tuple(fact.partition(":")[0] for fact in truth.get("references_disagree", ()))
    facts = {
        fact: both
        for fact, both in facts.items()
        if not any(
            fact.startswith(f"lscpu: {what.removesuffix('Cache').lower()}") for what in disputed
        )
    }
    assert {fact: both[0] for fact, both in facts.items()} == {
        fact: both[1] for fact, both in facts.items()
    }
    assert facts
    compared[name] = len(facts)


def compare_hwloc(host: Host, reference: dict[str, Any], truth: dict[str, Any]) -> Facts:
    """Yield the facts that lstopo prints of the tree."""
    facts: Facts = {
        "online": (str(host.online), reference["cpus"]),
        "present": (str(host.present), reference["complete_cpus"]),
    }
    for core in reference["cores"]:
        for cpu in CpuSet.parse(core["cpus"]):
            ours = host.cpu(cpu)
            facts[f"siblings of {cpu}"] = (str(ours.siblings), core["cpus"])
            facts[f"core of {cpu}"] = (ours.core, core["core_id"])
    for package in reference["packages"]:
        for cpu in CpuSet.parse(package["cpus"]):
            facts[f"package of {cpu}"] = (host.cpu(cpu).package, package["package_id"])
    facts |= _compare_caches(host, reference) | _compare_kinds(host, reference["cpukinds"])
    if truth["features"]["node_dirs"]:
        facts |= _compare_nodes(host, reference)
    if reference["pci"]:
        facts |= _compare_devices(host, reference)
    return facts


def _compare_devices(host: Host, reference: dict[str, Any]) -> Facts:
    """PCI devices by class and ids; interfaces and disks by name.

    Not the node: hwloc takes the locality of the bus above, which one tree has edited by hand.
    """
    devices = {str(device.address): device for device in host.pci or ()}
    facts: Facts = {}
    for entry in reference["pci"]:
        device = devices[entry["busid"]]
        facts[f"device {entry['busid']}"] = (
            ((device.class_ or "")[2:6], device.vendor, device.device),
            (entry["cls"], f"0x{entry['vendor']}", f"0x{entry['device']}"),
        )
    # hwloc's types 0 and 2 are block and network devices.
    for name, kind in (("block", "0"), ("net", "2")):
        ours = {each for device in devices.values() for each in getattr(device, name)}
        theirs = {each["name"] for each in reference["osdev"] if each["osdev_type"] == kind}
        if reference["osdev"]:
            facts[name] = (ours, theirs)
    return facts


def _compare_caches(host: Host, reference: dict[str, Any]) -> Facts:
    facts: Facts = {}
    for level, kind, key in (
        (1, "Data", "L1Cache"),
        (1, "Instruction", "L1iCache"),
        (2, "Unified", "L2Cache"),
        (3, "Unified", "L3Cache"),
    ):
        caches = [each for each in host.caches or () if (each.level, each.type) == (level, kind)]
        facts[f"{key} sharing"] = (
            _sharing(caches),
            sorted(each["cpus"] for each in reference[key]),
        )
        sizes = {str(each.cpus): (each.size_kib or 0) << 10 for each in caches}
        for each in reference[key]:
            facts[f"{key} size of {each['cpus']}"] = (sizes.get(each["cpus"]), each["size"])
    return facts


def _compare_kinds(host: Host, reference: list[dict[str, Any]]) -> Facts:
    """Kinds, which hwloc ranks by frequency and does not name, and base frequencies."""
    facts: Facts = {}
    if len(reference) == 2:
        for kind, entry in zip(("efficiency", "performance"), reference, strict=True):
            for cpu in CpuSet.parse(entry["cpus"]):
                facts[f"kind of {cpu}"] = (host.cpu(cpu).kind, kind)
    for entry in reference:
        told = entry["info"].get("FrequencyBaseMHz")
        for cpu in CpuSet.parse(entry["cpus"]) if told is not None else ():
            base = host.cpu(cpu).base_khz
            facts[f"base of {cpu}"] = (None if base is None else base // 1000, int(told))
    return facts


def _compare_nodes(host: Host, reference: dict[str, Any]) -> Facts:
    facts: Facts = {
        "nodes": (str(CpuSet(node.id for node in host.nodes or ())), reference["nodes"]),
    }
    for entry in reference["numa"]:
        node = host.node(entry["node"])
        # A node with memory only has, to hwloc, the CPUs that reach it best.
        if node.cpus:
            facts[f"CPUs of node {node.id}"] = (str(node.cpus & host.online), entry["local_cpus"])
        if node.memory_kib is not None:
            pools = sum(
                pages["size"] * pages["count"]
                for pages in entry["page_types"]
                if pages["size"] > 4096
            )
            # Before 2.9 and in trees without base pages hwloc counts the pools into the memory.
            facts[f"memory of node {node.id}"] = (
                node.memory_kib << 10 in {entry["local_memory"], entry["local_memory"] + pools},
                True,
            )
        for pages in entry["page_types"]:
            pool = next(
                (each for each in node.hugepages or () if each.size_kib << 10 == pages["size"]),
                None,
            )
            if pool is not None:
                fact = f"pages of {pool.size_kib} KiB of node {node.id}"
                facts[fact] = (pool.total, pages["count"])
    for matrix in reference["distances"]:
        if matrix["name"] == "NUMALatency":
            ours = [list(host.node(number).distances or ()) for number in matrix["indexes"]]
            facts["distances"] = (ours, matrix["matrix"])
    return facts


def compare_lscpu(host: Host, reference: dict[str, Any], truth: dict[str, Any]) -> Facts:
    """Yield the facts that lscpu prints of the tree: its own numbers, so who is together is
    compared.
    """
    del truth
    facts: Facts = {}
    rows = [row for row in reference["cpus"] if row["online"] == "Y"]
    for row in rows:
        cpu = host.cpu(row["cpu"])
        facts[f"online of {cpu.id}"] = (cpu.online, True)
        if row.get("node") is not None and host.nodes is not None:
            facts[f"node of {cpu.id}"] = (cpu.node, row["node"])
        if row.get("maxmhz") is not None:
            ours = None if cpu.max_khz is None else round(cpu.max_khz / 1000)
            facts[f"maximum of {cpu.id}"] = (ours, round(float(row["maxmhz"])))
    partitions: list[tuple[str, dict[int, Any]]] = [
        ("core", {row["cpu"]: host.cpu(row["cpu"]).siblings for row in rows}),
        ("l2", {row["cpu"]: host.cpu(row["cpu"]).l2 for row in rows}),
        ("l3", {row["cpu"]: host.cpu(row["cpu"]).l3 for row in rows}),
    ]
    for name, together in partitions:
        if rows and all(row.get(name) is not None for row in rows):
            theirs = {row["cpu"]: row[name] for row in rows}
            facts[f"{name} partition"] = (_partition(together), _partition(theirs))
    return facts


def compare_cpuinfo(host: Host, reference: dict[str, Any], truth: dict[str, Any]) -> Facts:
    """Yield the facts that the project that captured the tree wrote down of the machine."""
    del truth
    packages: dict[str, list[int]] = {}
    for cpu in host.cpus or ():
        if cpu.online:
            packages.setdefault(str(cpu.package), []).append(cpu.id)
    return {
        "cpus": (str(host.online), reference["cpus"]),
        "packages": (
            {name: str(CpuSet(cpus)) for name, cpus in packages.items()},
            reference["packages"],
        ),
        "cores": (
            sorted({str(cpu.siblings) for cpu in host.cpus or () if cpu.online}),
            sorted(reference["cores"]),
        ),
        "L3": (
            _sharing([each for each in host.caches or () if each.level == 3]),
            sorted(reference["L3"]),
        ),
        "nodes": ({str(node.id): str(node.cpus) for node in host.nodes or ()}, reference["nodes"]),
        "model": (host.processor.model_name if host.processor else None, reference["model"]),
    }


def compare_libvirt(host: Host, reference: dict[str, Any], truth: dict[str, Any]) -> Facts:
    """Yield the facts of libvirt's capabilities for the tree, resctrl included."""
    del truth
    facts: Facts = {}
    for cell in reference["cells"]:
        for row in cell["cpus"]:
            cpu = host.cpu(row["id"])
            facts[f"place of {cpu.id}"] = (
                (cpu.node, cpu.package, cpu.core, str(cpu.siblings)),
                (cell["id"], row["socket"], row["core"], row["siblings"]),
            )
    for bank in reference["cache_banks"]:
        factor = {"KiB": 1, "MiB": 1024}[bank["unit"]]
        ours = [
            (each.size_kib, str(each.cpus))
            for each in host.caches or ()
            if (each.level, each.id, each.type) == (bank["level"], bank["id"], "Unified")
        ]
        facts[f"cache {bank['level']}/{bank['id']}"] = (
            ours,
            [(int(bank["size"]) * factor, bank["cpus"])],
        )
        for control in bank["control"]:
            facts[f"resctrl {bank['id']} {control['type']}"] = (
                _allocation(host, control["type"]),
                int(control["maxAllocs"]),
            )
    return facts


def _allocation(host: Host, kind: str) -> int | None:
    caches = host.resctrl.caches if host.resctrl is not None else ()
    found = [each.classes for each in caches if each.resource == f"L3{kind.upper()}"]
    return found[0] if found else None


def _sharing(caches: list[Any]) -> list[str]:
    return sorted(str(cache.cpus) for cache in caches)


def _partition(groups: dict[int, Any]) -> list[list[int]]:
    """Return who is together, whatever the groups are called."""
    members: dict[Any, list[int]] = {}
    for cpu, group in groups.items():
        members.setdefault(group, []).append(cpu)
    return sorted(sorted(cpus) for cpus in members.values())
