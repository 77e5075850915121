"""``[tuning]`` becomes settings of control groups: a table, and laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.host.limits import (
    INNER,
    OUTER,
    LimitFile,
    differences,
    legacy_limits_of,
    limits_of,
    problems,
)
from kvmhooks.spec import parse_vm
from kvmhooks.spec.tuning import Tuning

VM = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n[tuning]\n'
GROUPS = ("vcpu0", "vcpu1", "emulator", "iothread1")

TABLE: list[tuple[str, dict[LimitFile, str]]] = [
    ("", {}),
    ("shares = 200", {LimitFile(OUTER, "cpu.weight"): "200"}),
    ("io.weight = 500", {LimitFile(OUTER, "io.weight"): "default 500"}),
    ("total.quota = 150000", {LimitFile(INNER, "cpu.max"): "150000 100000"}),
    ("total.period = 50000", {LimitFile(INNER, "cpu.max"): "max 50000"}),
    (
        "vcpus.quota = 50000\nemulator = { quota = 10000, period = 20000 }",
        {
            LimitFile("vcpu0", "cpu.max"): "50000 100000",
            LimitFile("vcpu1", "cpu.max"): "50000 100000",
            LimitFile("emulator", "cpu.max"): "10000 20000",
        },
    ),
    ("iothreads.quota = 1000", {LimitFile("iothread1", "cpu.max"): "1000 100000"}),
    (
        'memory = { hard = "2GiB", soft = "1GiB", swap = "3GiB" }',
        {
            LimitFile(INNER, "memory.max"): str(2 << 30),
            LimitFile(INNER, "memory.high"): str(1 << 30),
            LimitFile(INNER, "memory.swap.max"): str(1 << 30),
        },
    ),
    (
        'memory = { hard = "2GiB", swap = "1GiB" }',
        {LimitFile(INNER, "memory.max"): str(2 << 30), LimitFile(INNER, "memory.swap.max"): "0"},
    ),
    (
        'io.device = [{ path = "/dev/sda", read_bytes = "1MiB", write_operations = 50 }]',
        {LimitFile(INNER, "io.max", "8:0"): "8:0 rbps=1048576 wbps=max riops=max wiops=50"},
    ),
]


def tuning(text: str) -> Tuning:
    return parse_vm(VM + text, folder=Path("/")).tuning


@pytest.mark.parametrize(("text", "expected"), TABLE, ids=[text for text, _ in TABLE])
def test_each_key_has_its_place(text: str, expected: dict[LimitFile, str]) -> None:
    """Weights stand beside other VMs' groups, limits at the VM, quotas at the threads."""
    assert limits_of(tuning(text), GROUPS, lambda _: "8:0") == expected


LEGACY: list[tuple[str, dict[LimitFile, str]]] = [
    ("", {}),
    ("shares = 20000", {LimitFile(OUTER, "cpu.shares"): "20000"}),
    ("io.weight = 500", {LimitFile(OUTER, "blkio.bfq.weight"): "500"}),
    (
        "total.quota = 150000\nvcpus.period = 50000",
        {
            LimitFile(INNER, "cpu.cfs_period_us"): "100000",
            LimitFile(INNER, "cpu.cfs_quota_us"): "150000",
            LimitFile("vcpu0", "cpu.cfs_period_us"): "50000",
            LimitFile("vcpu0", "cpu.cfs_quota_us"): "-1",
            LimitFile("vcpu1", "cpu.cfs_period_us"): "50000",
            LimitFile("vcpu1", "cpu.cfs_quota_us"): "-1",
        },
    ),
    (
        'memory = { hard = "2GiB", soft = "1GiB", swap = "3GiB" }',
        {
            LimitFile(INNER, "memory.limit_in_bytes"): str(2 << 30),
            LimitFile(INNER, "memory.soft_limit_in_bytes"): str(1 << 30),
            LimitFile(INNER, "memory.memsw.limit_in_bytes"): str(3 << 30),
        },
    ),
    (
        'memory = { hard = "2GiB", swap = "1GiB" }',
        {
            LimitFile(INNER, "memory.limit_in_bytes"): str(2 << 30),
            LimitFile(INNER, "memory.memsw.limit_in_bytes"): str(2 << 30),
        },
    ),
    (
        'io.device = [{ path = "/dev/sda", read_bytes = "1MiB", write_operations = 50 }]',
        {
            LimitFile(INNER, "blkio.throttle.read_bps_device", "8:0"): "8:0 1048576",
            LimitFile(INNER, "blkio.throttle.write_bps_device", "8:0"): "8:0 0",
            LimitFile(INNER, "blkio.throttle.read_iops_device", "8:0"): "8:0 0",
            LimitFile(INNER, "blkio.throttle.write_iops_device", "8:0"): "8:0 50",
        },
    ),
]


@pytest.mark.parametrize(("text", "expected"), LEGACY, ids=[text for text, _ in LEGACY])
def test_v1_has_the_same_by_other_names(text: str, expected: dict[LimitFile, str]) -> None:
    """A thing without a limit stands as in a group that nobody has set; each has such a default."""
    found = legacy_limits_of(tuning(text), GROUPS, lambda _: "8:0")
    assert found == expected
    assert all(place.default for place in found)


REFUSED: list[tuple[str, dict[str, str]]] = [
    ("shares = 20000", {"tuning.shares": "found 20000, expected 10000 at most, as cpu.weight"}),
    (
        'memory.swap = "1GiB"',
        {
            "tuning.memory.swap": "found 1GiB, expected tuning.memory.hard beside it: the kernel "
            "limits swap by itself"
        },
    ),
    (
        'vcpus = { scheduler = "fifo", priority = 50 }\niothreads.scheduler = "rr"',
        {
            "tuning.vcpus.priority": "found 50, expected 49 at most: interrupt threads have 50",
            "tuning.iothreads.scheduler": 'found "rr", expected other, batch or idle: it shares '
            "its CPUs with the host, or --libvirt",
        },
    ),
    (
        'io.device = [{ path = "/dev/sda", weight = 5 }]',
        {
            "tuning.io.device[0].weight": "found 5, expected tuning.io.weight, for all devices, or "
            "--libvirt"
        },
    ),
    ('vcpus = { scheduler = "rr", priority = 49 }\nemulator.scheduler = "batch"', {}),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=[text for text, _ in REFUSED])
def test_what_libvirt_alone_can_do_is_said(text: str, expected: dict[str, str]) -> None:
    """Never left out in silence."""
    messages = dict(str(problem).split(": ", 1) for problem in problems(tuning(text)))
    assert messages == expected


def test_v1_has_ranges_of_its_own() -> None:
    """Shares go further there, and weights of disks do not."""
    text = "shares = 20000\nio.weight = 5000"
    assert [str(problem) for problem in problems(tuning(text), is_unified=False)] == [
        "tuning.io.weight: found 5000, expected 1000 at most, as blkio.bfq.weight"
    ]


places = st.builds(
    LimitFile,
    st.sampled_from([OUTER, INNER, "vcpu0"]),
    st.sampled_from(["cpu.max", "memory.max", "io.max"]),
    st.sampled_from(["", "8:0"]),
)
limits = st.dictionaries(places, st.sampled_from(["1", "2"]))


@given(before=limits, after=limits)
def test_what_is_written_leads_from_one_to_the_other(before: Any, after: Any) -> None:
    """A host that has ``before`` has ``after`` then, and defaults where nothing is said."""
    host = dict(before) | differences(before, after)
    assert {place: value for place, value in host.items() if value != place.default} == after


@given(limits)
def test_nothing_is_written_without_need(same: Any) -> None:
    """A value that stands there stays there."""
    assert differences(same, same) == {}
