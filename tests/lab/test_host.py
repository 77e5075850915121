"""The host as kvmhooks reads it, against what hwloc and numactl say of the same server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from .variants import VARIANTS

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

READ = "import json, kvmhooks.host as host; print(json.dumps(host.to_json(host.read())))"
Cpu = tuple[int, int, frozenset[int], frozenset[int], int]
"""Package, core, the CPUs of the core, the CPUs of the L3, node."""


def test_every_cpu_is_where_lstopo_sees_it(shared_lab: Lab) -> None:
    """Package, core, siblings, L3 and node of each CPU are those that lstopo reports."""
    host = json.loads(shared_lab.output(["python3", "-c", READ]))
    tree = ET.fromstring(shared_lab.output("lstopo --of xml"))
    assert _read_by_kvmhooks(host) == dict(_read_by_hwloc(tree))


def test_the_nodes_are_what_numactl_sees(shared_lab: Lab) -> None:
    """CPUs, memory and distances of each NUMA node are those that numactl reports."""
    host = json.loads(shared_lab.output(["python3", "-c", READ]))
    text = shared_lab.output("numactl --hardware")
    for node in host["nodes"]:
        number = node["id"]
        cpus = {int(cpu) for cpu in _line(text, f"node {number} cpus:").split()}
        megabytes = int(_line(text, f"node {number} size:").split()[0])
        distances = [int(word) for word in _line(text, rf" +{number}:").split()]
        assert _cpus(node["cpus"]) == cpus
        assert node["memory_kib"] // 1024 == megabytes
        assert node["distances"] == distances
    assert len(host["nodes"]) == int(_line(text, "available:").split()[0])


def test_huge_pages_are_counted_where_they_are(shared_lab: Lab) -> None:
    """Huge pages that appear on one node are read there and not on the other."""
    pool = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    shared_lab.output(f"echo 3 > {pool}")
    host = json.loads(shared_lab.output(["python3", "-c", READ]))
    shared_lab.output(f"echo 0 > {pool}")
    pages = {
        node["id"]: [page["total"] for page in node["hugepages"] if page["size_kib"] == 2048]
        for node in host["nodes"]
    }
    assert pages == {0: [0], 1: [3]}


def test_the_kernel_says_whether_cpus_are_isolated(shared_lab: Lab) -> None:
    """Isolated and tickless CPUs are those of the kernel's command line, and no others."""
    host = json.loads(shared_lab.output(["python3", "-c", READ]))
    expected = {6, 7} if shared_lab.variant.name == "isolcpus" else set()
    assert {cpu["id"] for cpu in host["cpus"] if cpu["isolated"]} == expected
    assert {cpu["id"] for cpu in host["cpus"] if cpu["nohz_full"]} == expected


def _read_by_kvmhooks(host: dict[str, Any]) -> dict[int, Cpu]:
    level3 = {cache["id"]: _cpus(cache["cpus"]) for cache in host["caches"] if cache["level"] == 3}
    return {
        cpu["id"]: (
            cpu["package"],
            cpu["core"],
            _cpus(cpu["siblings"]),
            level3[cpu["l3"]],
            cpu["node"],
        )
        for cpu in host["cpus"]
    }


def _read_by_hwloc(tree: ET.Element) -> Iterator[tuple[int, Cpu]]:
    objects = {kind: tree.findall(f".//object[@type='{kind}']") for kind in
               ("Package", "L3Cache", "Core", "NUMANode", "PU")}  # fmt: skip
    for unit in objects["PU"]:
        number = int(unit.attrib["os_index"])
        around = {
            kind: next(each for each in objects[kind] if number in _mask(each))
            for kind in ("Package", "L3Cache", "Core", "NUMANode")
        }
        yield (
            number,
            (
                int(around["Package"].attrib["os_index"]),
                int(around["Core"].attrib["os_index"]),
                _mask(around["Core"]),
                _mask(around["L3Cache"]),
                int(around["NUMANode"].attrib["os_index"]),
            ),
        )


def _mask(item: ET.Element) -> frozenset[int]:
    """hwloc's sets are hexadecimal words of 32 bits, the highest first."""
    bits = int("".join(word[2:].rjust(8, "0") for word in item.attrib["cpuset"].split(",")), 16)
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def _cpus(text: str) -> frozenset[int]:
    spans = [part.split("-") for part in text.split(",") if part]
    return frozenset(cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1))


def _line(text: str, start: str) -> str:
    (found,) = re.findall(f"^{start}(.*)", text, re.MULTILINE)
    return str(found)
