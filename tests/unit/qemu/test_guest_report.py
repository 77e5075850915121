"""A guest's report of itself is compared with its plan, whatever it says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.placement import Plan
from kvmhooks.qemu.guest_report import (
    MARK,
    MAX_BYTES,
    Difference,
    Unreadable,
    compare,
    parse,
)
from kvmhooks.spec.forms import InterfaceName
from kvmhooks.spec.network import Net
from tests.golden.cases import golden_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The plan of 4 vCPUs (2 sockets of 1 core of 2 threads) with a raw disk that is there."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\0" * 1_000_000)
    made = golden_plan("report", "server")
    (named,) = made.spec.disk
    spec = attrs.evolve(made.spec, disk=(attrs.evolve(named, path=disk),))
    return attrs.evolve(made, spec=spec)


RIGHT: dict[str, Any] = {
    "kvmhooks-guest": 1,
    "cpus": [
        {"cpu": 0, "package": 0, "siblings": "0-1", "l3": "0-1"},
        {"cpu": 1, "package": 0, "siblings": "0-1", "l3": "0-1"},
        {"cpu": 2, "package": 1, "siblings": "2-3", "l3": "2-3"},
        {"cpu": 3, "package": 1, "siblings": "2-3", "l3": "2-3"},
    ],
    "nodes": [
        {"node": 0, "cpus": "0-1", "memory_kib": 261_000, "distances": [10, 20]},
        {"node": 1, "cpus": "2-3", "memory_kib": 262_144, "distances": [20, 10]},
    ],
    "disks": [{"name": "vda", "bytes": 999_936, "readonly": False, "queues": 4}],
    "nets": [],
    "cmdline": "console=ttyS0 quiet panic=-1",
}


def test_a_guest_as_planned(plan: Plan) -> None:
    """A guest that sees what was planned differs in nothing, whatever numbers it gives packages."""
    assert compare(plan, RIGHT) == []
    renamed = copy.deepcopy(RIGHT)
    for cpu in renamed["cpus"]:
        cpu["package"] = 7 - cpu["package"]
    assert compare(plan, renamed) == []


DIFFERENCES: list[tuple[Callable[[dict[str, Any]], None], Difference]] = [
    (
        lambda report: report["cpus"][1].update(siblings="1"),
        Difference("threads of a core", "0-1 2-3", "0-1 1 2-3"),
    ),
    (
        lambda report: report["cpus"][1].update(package=1),
        Difference("vCPUs of a socket", "0-1 2-3", "0 1-3"),
    ),
    (
        lambda report: report["nodes"][0].update(cpus="0"),
        Difference("vCPUs of each NUMA node", "{0: '0-1', 1: '2-3'}", "{0: '0', 1: '2-3'}"),
    ),
    (
        lambda report: report["nodes"][1].update(memory_kib=262_145),
        Difference("memory of NUMA node 1", "262144 KiB", "262145 KiB"),
    ),
    (
        lambda report: report["nodes"][0].update(memory_kib=262_144 - 2049),
        Difference("memory of NUMA node 0", "262144 KiB", "260095 KiB"),
    ),
    (
        lambda report: report["cpus"][1].update(l3="1"),
        Difference("vCPUs of an L3", "0-1 2-3", "0-1 1 2-3"),
    ),
    (
        lambda report: report["nodes"][0].update(distances=[10, 31]),
        Difference(
            "distances of the NUMA nodes",
            "{0: [10, 20], 1: [20, 10]}",
            "{0: [10, 31], 1: [20, 10]}",
        ),
    ),
    (
        lambda report: report["disks"][0].update(queues=1),
        Difference("disk[0]'s queues", "4", "1"),
    ),
    (lambda report: report["disks"].clear(), Difference("disks", "1", "0")),
    (
        lambda report: report["disks"][0].update(readonly=True),
        Difference("disk[0].readonly", "False", "True"),
    ),
    (
        lambda report: report["disks"][0].update(bytes=512),
        Difference("disk[0]'s bytes", "999936", "512"),
    ),
    (
        lambda report: report.update(cmdline="quiet"),
        Difference("kernel command line", "'console=ttyS0 quiet panic=-1'", "'quiet'"),
    ),
]


@pytest.mark.parametrize(("change", "expected"), DIFFERENCES, ids=range(len(DIFFERENCES)))
def test_each_difference_is_found(
    plan: Plan, change: Callable[[dict[str, Any]], None], expected: Difference
) -> None:
    """One thing that is not as planned is one difference, with what was planned and seen."""
    report = copy.deepcopy(RIGHT)
    change(report)
    assert compare(plan, report) == [expected]


def test_interfaces_are_found_by_their_address(plan: Plan) -> None:
    """Their queues, no more than there are vCPUs, and what they may send at once."""
    mac = "52:54:00:00:00:07"
    net = Net(type="tap", device=InterfaceName("tap0"), queues=8, mtu=1400)
    plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, net=(net,)), macs=(mac,))
    report = copy.deepcopy(RIGHT)
    report["nets"] = [{"mac": mac, "queues": 4, "mtu": 1400}]
    assert compare(plan, report) == []
    report["nets"] = [{"mac": mac, "queues": 1, "mtu": 1500}]
    assert compare(plan, report) == [
        Difference("net[0]'s queues", "4", "1"),
        Difference("net[0].mtu", "1400", "1500"),
    ]


def test_what_an_older_guest_does_not_tell_is_not_compared(plan: Plan) -> None:
    """A guest whose kernel has no cache to show, or whose report is of an older release."""
    report = copy.deepcopy(RIGHT)
    del report["nets"], report["disks"][0]["queues"]
    for each in (*report["cpus"], *report["nodes"]):
        each.pop("l3", None)
        each.pop("distances", None)
    assert compare(plan, report) == []


def test_a_missing_vcpu_is_told(plan: Plan) -> None:
    """A vCPU that the guest does not see is missing in all that counts vCPUs."""
    report = copy.deepcopy(RIGHT)
    del report["cpus"][3]
    assert [str(difference) for difference in compare(plan, report)] == [
        "vCPUs: planned 4, the guest sees 3",
        "vCPUs of a socket: planned 0-1 2-3, the guest sees 0-1 2",
    ]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.data())
def test_a_hostile_guest_is_no_traceback(data: st.DataObject) -> None:
    """With anything in any place, a report is compared or refused as unreadable."""
    report: Any = copy.deepcopy(RIGHT)
    table = data.draw(
        st.sampled_from([report, *report["cpus"], *report["nodes"], *report["disks"]])
    )
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = data.draw(ANYTHING)
    try:
        found: object = compare(golden_plan("report", "server"), report)
    except Unreadable as error:
        found = str(error)
    assert isinstance(found, list) or str(found).startswith("found a guest report without ")


@pytest.mark.parametrize("odd", [7, None, [], "x"])
def test_siblings_that_are_no_set_are_unreadable(plan: Plan, odd: object) -> None:
    """The report is refused whatever stands where a set should be."""
    report = copy.deepcopy(RIGHT)
    report["cpus"][0]["siblings"] = odd
    with pytest.raises(Unreadable, match="found a guest report without"):
        compare(plan, report)


def test_parse_reads_a_report() -> None:
    """A line that begins with the mark is read as JSON."""
    line = json.dumps(RIGHT, separators=(",", ":")).encode()
    assert line.startswith(MARK)
    assert parse(line) == RIGHT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "found no line of kvmhooks' guest report"),
        (b'{"kvmhooks-guest":2,"cpus":[]}', "found no line of kvmhooks' guest report"),
        (MARK + b" " * MAX_BYTES, "found no line of kvmhooks' guest report"),
        (MARK + b'"cpus":', "found a guest report that is no JSON"),
        (MARK + b'"\xff":1}', "found a guest report that is no JSON"),
        (MARK + b'"a":' + b"[" * 100_000, "found a guest report that is no JSON"),
        (MARK + b'"a":' + b"9" * 5000 + b"}", "found a guest report that is no JSON"),
    ],
    ids=range(7),
)
def test_other_lines_are_refused(line: bytes, message: str) -> None:
    """Another version, too long a line, and what is no JSON are told as such."""
    with pytest.raises(Unreadable, match=message):
        parse(line)
