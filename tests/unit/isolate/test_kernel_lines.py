"""Names that any user may give: of the kernel's files a line feed alone ends a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.host.files.tree import Tree
from kvmhooks.host.system.cgroup import parse_mounts
from kvmhooks.isolate.resources.host_uses import uses_of
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.isolate.vm.qemu_threads import owner_of, threads_of
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.world import Vm, World, effective_state, intruders

ENDS = ("\x0b", "\x0c", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
"""Characters that ``str.splitlines()`` takes for the end of a line, besides the line feed."""

NAMES = [
    *(f"a{end}b" for end in ENDS),
    *(f"a{end}" for end in (*ENDS, " ", "\t", "\xa0")),
    "a:b",
    "\udcff",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("controllers", ["", "cpuset"])
def test_a_groups_name_is_read_as_it_is(tmp_path: Path, name: str, controllers: str) -> None:
    """A group may be called so; the kernel refuses nothing but a line feed (``cgroup_mkdir()``)."""
    path = tmp_path / "proc/7/cgroup"
    path.parent.mkdir(parents=True)
    line = f"4:{controllers}:/docker/{name}\n" if controllers else f"0::/docker/{name}\n"
    path.write_bytes(line.encode("utf-8", "surrogateescape"))
    groups = Groups(base="sys/fs/cgroup", is_unified=not controllers)
    assert groups.of_process(System(str(tmp_path)), 7) == f"docker/{name}"


@pytest.mark.parametrize("flavour", ["partitions", "systemd", "plain", "legacy"])
def test_vms_start_beside_groups_of_any_name(flavour: str) -> None:
    """Each task in such a group is kept off the VM's CPUs, and gets its mask back."""
    kernel = Kernel(flavour, 8, 4)
    for name in NAMES:
        kernel.groups.make(f"user.slice/{name}")
        pid = kernel.spawn("x\x0b\u00b2", group=f"user.slice/{name}")
        kernel.pin(pid, CpuSet.parse("2,6"))
    world = World(kernel)
    before = effective_state(kernel)
    vm = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
    world.start(vm)
    assert list(intruders(kernel, world)) == []
    world.stop(vm)
    assert effective_state(kernel) == before
    assert kernel.record is None


@pytest.mark.parametrize("name", ["vhost-\u00b2", "vhost-\u2460", "vhost-", "vhost-1\u00b2"])
def test_a_threads_name_with_digits_that_are_no_number(tmp_path: Path, name: str) -> None:
    """``str.isdigit()`` is true of superscripts, of which ``int()`` makes nothing."""
    assert owner_of(name) == 0
    task = tmp_path / "proc/7/task/7"
    task.mkdir(parents=True)
    (task / "stat").write_text(f"7 ({name}) S 1\n")
    (tmp_path / "proc/7/cgroup").write_text("0::/m/vcpu\u00b2\n")
    found = threads_of(System(str(tmp_path)), Groups(base="", is_unified=True), 7)
    assert [(thread.name, thread.role) for thread in found] == [(name, "emulator")]


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_a_disk_that_is_mounted_at_an_odd_place_is_in_use(tmp_path: Path, end: str) -> None:
    """A label of a medium may name the place (udisks): its line is not two."""
    device = "0000:05:00.0"
    line = f"36 1 8:16 / /media/u/a{end}b rw - ext4 /dev/sdb rw\n"
    for path, text in {
        f"sys/devices/pci0000:00/{device}/block/sdb/dev": "8:16\n",
        "proc/self/mountinfo": line,
        "proc/cmdline": "quiet\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, newline="")
    (tmp_path / "sys/block").mkdir(parents=True)
    (tmp_path / "sys/block/sdb").symlink_to(f"../devices/pci0000:00/{device}/block/sdb")
    assert [reason for reason, _ in uses_of(System(str(tmp_path)), device)] == ["mounted"]
    assert list(Tree(tmp_path).lines("proc/self/mountinfo", 9_999)) == [line.rstrip("\n")]


def test_a_mounts_source_is_one_word() -> None:
    """`/proc/mounts` escapes blanks in it (``mangle()``, fs/proc_namespace.c), and nothing else."""
    line = "x\u2028/evil\u2028cgroup2\u2028rw /home/u/x fuse.x rw 0 0"
    assert parse_mounts([line, "c /sys/fs/cgroup cgroup2 rw 0 0"])[0].path == "sys/fs/cgroup"
