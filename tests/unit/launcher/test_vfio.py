"""The needs of a QEMU with devices of the host."""

from __future__ import annotations

import os
import pwd
import resource
import subprocess
from pathlib import Path

import pytest

from kvm_launch.prepare import checks
from kvm_launch.prepare.vfio import BESIDE, UNLIMITED, locked_memory, nodes_of
from kvm_launch.spawn import privileges
from kvmhooks.host import read
from kvmhooks.placement import plan
from kvmhooks.spec import parse_vm
from kvmhooks.spec.structure import structure
from tests.fakedevices import FakePci
from tests.fakehost import write_host

VM = {"name": "a", "cpu": {"vcpus": 1}, "memory": {"size": "64MiB"}}
PCI = {"pci": [{"address": "0000:3b:00.0"}]}
MIB = 1 << 20
ADDRESSES = ("0000:3b:00.0", "0000:3b:00.1", "0000:5e:00.0", "0000:5f:00.0")

TABLE = [
    ({}, 0),
    ({"memory": {"size": "64MiB", "locked": True}}, UNLIMITED),
    (PCI, 64 * MIB + BESIDE),
    ({"nvme": [{"address": "0000:3b:00.0"}]}, 64 * MIB + BESIDE),
    ({"net": [{"type": "hostdev", "address": "0000:3b:00.0"}]}, 64 * MIB + BESIDE),
    ({"net": [{"type": "user"}]}, 0),
    ({"mdev": [{"uuid": "c0d5a2b0-0000-4000-8000-000000000001"}]}, 64 * MIB + BESIDE),
    ({**PCI, "memory": {"size": "64MiB", "maximum": "1GiB"}}, 1024 * MIB + BESIDE),
    (
        {**PCI, "memory": {"size": "64MiB", "virtio": [{"size": "128MiB"}]}},
        192 * MIB + BESIDE,
    ),
    ({**PCI, "shared_memory": {"size": "128MiB"}}, 192 * MIB + BESIDE),
    ({"shared_memory": {}}, 0),
]


@pytest.mark.parametrize(("keys", "expected"), TABLE, ids=[str(keys) for keys, _ in TABLE])
def test_memory_that_is_locked(keys: dict[str, object], expected: int) -> None:
    """All that a device may reach, as large as the guest can grow."""
    assert locked_memory(structure({**VM, **keys}, Path("/"))) == expected


def test_each_group_has_a_file(tmp_path: Path) -> None:
    """In order, and each once; a device that is not there has none."""
    bus = tmp_path / "sys/bus/pci/devices"
    for address, group in zip(ADDRESSES[:3], (12, 12, 7), strict=True):
        (bus / address).mkdir(parents=True)
        (bus / address / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
    mediated = "c0d5a2b0-0000-4000-8000-000000000001"
    (tmp_path / "sys/bus/mdev/devices" / mediated).mkdir(parents=True)
    (tmp_path / "sys/bus/mdev/devices" / mediated / "iommu_group").symlink_to("groups/100")
    text = f"""
        name = "a"
        cpu.vcpus = 1
        memory.size = "64MiB"
        pci = [{{address = "0000:3b:00.0"}}, {{address = "0000:3b:00.1"}}]
        nvme = [{{address = "0000:5e:00.0"}}, {{address = "0000:5f:00.0"}}]
        mdev = [{{uuid = "{mediated}"}}]
    """
    pci = [FakePci(address, iommu_group=5) for address in ADDRESSES]
    decided = plan(parse_vm(text, folder=tmp_path), read(write_host(tmp_path / "host", pci=pci)))
    assert nodes_of(decided, tmp_path) == [Path("/dev/vfio", name) for name in ("7", "12", "100")]


def test_who_cannot_raise_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is high enough, or one is root."""
    spec = structure({**VM, "memory": {"size": "64MiB", "locked": True}}, Path("/"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (MIB, 8 * MIB))
    (problem,) = checks.locked(spec)
    assert str(problem) == (
        "memory.locked: found a limit of 8192 KiB on memory that may be locked, expected no limit "
        "(`ulimit -l`, LimitMEMLOCK=), or root to start it"
    )
    monkeypatch.setattr(resource, "getrlimit", lambda _: (MIB, resource.RLIM_INFINITY))
    assert list(checks.locked(spec)) == []


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can")


def began(words: list[str], start_pipe: int) -> str:
    """Return what a child's program prints."""
    return subprocess.run(
        words, pass_fds=[start_pipe], stdout=subprocess.PIPE, check=True, text=True
    ).stdout


@pytest.fixture
def start_pipe() -> int:
    """A start pipe that is open."""
    waiting, opening = os.pipe()
    os.write(opening, b"\1")
    os.close(opening)
    return waiting


def _may_raise() -> bool:
    """Return whether root can raise a limit here (CAP_SYS_RESOURCE): not in every container."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (held,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(held >> 24 & 1)


@ROOT_ONLY
@pytest.mark.parametrize(
    ("size", "expected"), [(1 << 34, str(1 << 24)), (UNLIMITED, "unlimited"), (0, "64")]
)
def test_a_child_may_lock_so_much(start_pipe: int, size: int, expected: str) -> None:
    """Both limits are raised as far as we may, and nothing changes for who locks nothing."""
    if not _may_raise():
        expected = "64"
    words = [
        *("prlimit", "--memlock=65536:65536"),
        *privileges.command(start_pipe, gains=False, ids="", moves={}, locked=size),
        *("/bin/sh", "-c", "ulimit -S -l; ulimit -H -l"),
    ]
    assert began(words, start_pipe).split() == [expected, expected]


@ROOT_ONLY
def test_a_child_has_its_own_devices_alone(start_pipe: int) -> None:
    """They are its user's there; on the host they stay whose they are, and others' are not seen."""
    nobody = pwd.getpwnam("nobody")
    ids = f"{nobody.pw_uid}:{nobody.pw_gid}:{nobody.pw_gid}"
    words = privileges.command(
        start_pipe,
        gains=False,
        ids=ids,
        moves={},
        writable_dirs=["us:/dev"],
        device_nodes=["/dev/vfio/7"],
    )
    look = "cd /dev/vfio; stat -c '%n %a %u %t:%T' *; echo"
    script = (
        "mount -t tmpfs none /dev; mkdir /dev/vfio; mknod -m 666 /dev/vfio/vfio c 10 196; "
        "mknod -m 600 /dev/vfio/7 c 240 7; mknod -m 600 /dev/vfio/8 c 240 8; "
        'for word; do shift; [ "$word" != PARENT ] || word=$$; set -- "$@" "$word"; done; '
        f'"$@"; {look}'
    )
    words[words.index(str(os.getpid()))] = "PARENT"
    words = ["unshare", "--mount", "sh", "-euc", script, "sh", *words, "/bin/sh", "-c", look]
    output = began(words, start_pipe)
    inside, outside = output.strip().split("\n\n")
    assert inside.splitlines() == [f"7 600 {nobody.pw_uid} f0:7", "vfio 666 0 a:c4"]
    assert outside.splitlines() == ["7 600 0 f0:7", "8 600 0 f0:8", "vfio 666 0 a:c4"]
