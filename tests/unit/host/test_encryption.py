"""The encryption of guests' memory, as the cpuid driver and the misc controller tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.host import Host, read
from kvmhooks.host.capture import capture
from kvmhooks.host.system.system import Sev
from tests.fakehost import write_host

CPUID = "dev/cpu/0/cpuid"
MILAN = "8000001f 17b 173 1fd 64"
"""An EPYC 7003 with «minimum SEV ASID» 100: 410 ASIDs for SEV, 99 for SEV-ES."""
V2 = {"proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"}
V1 = {"proc/mounts": "misc /sys/fs/cgroup/misc cgroup rw,misc 0 0"}


def told(folder: Path, files: dict[str, str]) -> Host:
    return read(write_host(folder, files=files), ["cgroup", "processor"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MILAN, Sev(cbitpos=51, asids=410, es_asids=99)),
        ("8000001f 2 2f f 1", Sev(cbitpos=47, asids=15, es_asids=0)),
        ("8000001f 1 16f 0 0", None),  # no SEV
        ("8000001f 0 0 0 0", None),
        ("7 1 f1bf07ab 405fc6 10", None),  # another leaf
        ("8000001f 2 2f f", None),
        ("8000001f 2 no f 1", None),
        ("8000001f 2 2ffffffffff f 1", None),
        ("", None),
    ],
)
def test_the_processors_leaf(text: str, expected: Sev | None, tmp_path: Path) -> None:
    """The bit, and how many ASIDs there are of either kind; nonsense tells nothing."""
    processor = told(tmp_path, {"proc/cpuinfo": "processor\t: 0", CPUID: text}).processor
    assert (processor and processor.sev) == expected


GROUPS = {
    "sys/fs/cgroup/machine.slice/misc.current": "sev 3\nsev_es 2",
    "sys/fs/cgroup/machine.slice/a.scope/misc.current": "sev 3\nsev_es 2",
    "sys/fs/cgroup/kvm-launch.slice/misc.current": "sev 1\nsev_es 0",
}


@pytest.mark.parametrize(
    ("files", "keys", "used"),
    [
        (
            {
                **V2,
                "sys/fs/cgroup/misc.capacity": "sev 410\nsev_es 99",
                "sys/fs/cgroup/misc.current": "sev 5\nsev_es 2\nno number",
                **GROUPS,
            },
            {"sev": 410, "sev_es": 99},
            {"sev": 5, "sev_es": 2},
        ),
        (
            {**V2, "sys/fs/cgroup/misc.capacity": "sev 410\nsev_es 99", **GROUPS},
            {"sev": 410, "sev_es": 99},
            {"sev": 4, "sev_es": 2},
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/misc/misc.capacity": "tdx 31",
                "sys/fs/cgroup/misc/misc.current": "tdx 30",
            },
            {"tdx": 31},
            {"tdx": 30},
        ),
        ({**V2, "sys/fs/cgroup/misc.capacity": "sev 410"}, {"sev": 410}, None),
        ({**V2, "sys/fs/cgroup/misc.capacity": "sev x\nsev_es -1\ntdx 1"}, {"tdx": 1}, None),
    ],
    ids=["root", "groups", "version 1", "nobody counts", "nonsense"],
)
def test_the_kernel_counts_the_keys(
    files: dict[str, str], keys: dict[str, int], used: dict[str, int] | None, tmp_path: Path
) -> None:
    """The root's own number, or that of the groups below it, each with what is below that."""
    cgroup = told(tmp_path, files).cgroup
    assert cgroup is not None
    assert (cgroup.misc, cgroup.misc_used) == (keys, used)


def test_a_capture_has_it(tmp_path: Path) -> None:
    """The leaf and the counts are read back as they were."""
    files = {CPUID: MILAN, **V2, "sys/fs/cgroup/misc.capacity": "sev 9\nsev_es 3"}
    found = capture(tmp_path / "copy", write_host(tmp_path / "root", files=files))
    assert found.processor is not None
    assert found.processor.sev == Sev(cbitpos=51, asids=410, es_asids=99)
    assert read(tmp_path / "copy") == found
