"""QEMU's threads at `started`: class, clamps, cookies, vhost workers; modelled and for real."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.record.report import APPLIED, REFUSAL
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system import scheduling
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import KERNEL_THREAD, Kernel, Record
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import ISOLATION, Vm, World, effective_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLICY = ISOLATION + ('<kvmhooks:threads vcpus="fifo:1" uclamp_min="512" sched_core="vcpus"/>')


def guest(policy: str = POLICY, cpus: str = "6-7") -> Vm:
    return Vm("a", CpuSet.parse(cpus), CpuSet.parse("0-1"), policy)


def scheduled(kernel: Kernel, vm: Vm) -> dict[str, tuple[str, ...]]:
    """Class, clamps, and whether there is a cookie, of each of QEMU's threads by its name."""
    return {
        task.name: (
            task.scheduling["scheduler"],
            task.scheduling["uclamp"],
            "none" if task.scheduling["cookie"] == "0" else "cookie",
        )
        for tid, task in sorted(kernel.tasks.items())
        if vm.pid in {tid, task.leader}
    }


UNTOUCHED = ("other:0", "0:1024", "none")
TUNED = ("fifo:1", "512:1024", "cookie")


@pytest.mark.parametrize("flavour", ["partitions", "systemd", "plain", "legacy"])
def test_the_vcpus_get_what_the_policy_asks_and_nothing_else_does(flavour: str) -> None:
    """Neither the emulator nor another process; and it is all given back while QEMU goes on."""
    kernel = Kernel(flavour, 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert scheduled(kernel, vm) == {
        "qemu-kvm": UNTOUCHED, "CPU 0/KVM": TUNED, "CPU 1/KVM": TUNED,
    }  # fmt: skip
    others = [task for task in kernel.tasks.values() if task.leader != vm.pid]
    assert all(other.scheduling == scheduling.DEFAULTS for other in others)
    assert world.reconcile().of(APPLIED) == []
    Registry(kernel, Record(kernel)).undo(vm.key)
    assert set(scheduled(kernel, vm).values()) == {UNTOUCHED}
    assert not [key for key in world.state.records if key.startswith("thread/")]


def test_a_vcpu_that_is_plugged_in_gets_the_same() -> None:
    """And the others keep theirs: all vCPUs have one cookie."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest(cpus="5-7")
    world.start(vm)
    kernel.end(next(tid for tid, task in kernel.tasks.items() if task.name == "CPU 2/KVM"))
    tid = world.plug(vm, 2, 7)
    assert kernel.tasks[tid].scheduling == scheduling.DEFAULTS
    world.reconcile()
    cookies = {
        task.scheduling["cookie"] for task in kernel.tasks.values() if task.name.startswith("CPU")
    }
    assert len(cookies) == 1
    assert cookies != {"0"}
    assert scheduled(kernel, vm)["CPU 2/KVM"] == TUNED
    assert scheduled(kernel, vm)["qemu-kvm"] == UNTOUCHED


@pytest.mark.parametrize("flavour", ["partitions", "legacy"])
def test_what_kvm_starts_from_a_vcpu_is_no_vcpu(flavour: str) -> None:
    """Kernel 6.12 has a thread of its own in vCPU 0's group: it neither runs first nor hinders."""
    kernel = Kernel(flavour, 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    inner = vm.scope if flavour == "legacy" else f"{vm.scope}/libvirt"
    kernel.spawn("kvm-nx-lpage-re", group=f"{inner}/vcpu0", leader=vm.pid)
    assert "scheduler" not in refusals(world, vm)
    assert [values[0] for values in scheduled(kernel, vm).values()] == [
        "other:0", "fifo:1", "fifo:1", "other:0",
    ]  # fmt: skip


def test_cookies_that_libvirt_gave_stay() -> None:
    """`sched_core = "emulator"` in qemu.conf: one for all of QEMU, and it is not replaced."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest()
    world.gives_cookies = True
    world.start(vm)
    before = [task.scheduling["cookie"] for task in kernel.tasks.values() if task.leader == vm.pid]
    assert len(set(before)) == 1
    Registry(kernel, Record(kernel)).undo(vm.key)
    assert before == [
        task.scheduling["cookie"] for task in kernel.tasks.values() if task.leader == vm.pid
    ]


def refusals(world: World, vm: Vm) -> dict[str, str]:
    """Return the refusals at `started`, with the reason, by the last part of the knob's name."""
    report = world.call(vm, "started", "begin")
    assert report is not None
    return {
        result.key.rpartition("/")[2]: result.why
        for result in report.of(REFUSAL)
        if "thread/" in result.key
    }


def test_a_kernel_without_core_scheduling_is_reported() -> None:
    """EINVAL of the prctl, in words; the rest is set."""
    kernel = Kernel("systemd", 8, 10)
    kernel.has_cookies = False
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert "CONFIG_SCHED_CORE" in refusals(world, vm)["sched_core"]
    assert scheduled(kernel, vm)["CPU 0/KVM"] == ("fifo:1", "512:1024", "none")


def test_no_vcpu_runs_first_where_another_thread_of_qemu_may_run() -> None:
    """An I/O thread that came later sits on vCPU 0's CPU: that vCPU goes back, the other stays."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    tid = kernel.spawn("IO iothread1", group=vm.scope, leader=vm.pid)
    kernel.pin(tid, CpuSet.parse("1,6"))
    world.reconcile()
    assert "shares CPUs 6 with QEMU's other threads" in refusals(world, vm)["scheduler"]
    assert [values[0] for values in scheduled(kernel, vm).values()] == [
        "other:0", "other:0", "fifo:1", "other:0",
    ]  # fmt: skip


def test_the_kernels_guard_is_not_gone_without() -> None:
    """With sched_rt_runtime_us = -1 nothing would be left for others, unless that is asked for."""
    kernel = Kernel("systemd", 8, 10)
    kernel.files["proc/sys/kernel/sched_rt_runtime_us"] = "-1"
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert "sched_rt_runtime_us is -1" in refusals(world, vm)["scheduler"]
    assert scheduled(kernel, vm)["CPU 0/KVM"][0] == "other:0"
    world.stop(vm)
    asked = guest(POLICY + '<kvmhooks:kernel rt_runtime="-1"/>')
    world.start(asked)
    assert scheduled(kernel, asked)["CPU 0/KVM"][0] == "fifo:1"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ('<kvmhooks:threads vcpus="fifo:1"/>', "without exclusive CPUs"),
        (ISOLATION + '<kvmhooks:threads vcpus="fifo:50"/>', "interrupt threads have 50"),
        (ISOLATION + '<kvmhooks:threads vcpus="fifo"/>', "fifo:1"),
        (ISOLATION + '<kvmhooks:threads uclamp_min="1025"/>', "from 0 to 1024"),
        (ISOLATION + '<kvmhooks:threads vhost="1-"/>', "a CPU list"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_before_the_start(policy: str, message: str) -> None:
    with pytest.raises(IsolationError, match=message):
        read_claim(guest(policy).xml)


@pytest.mark.parametrize("kind", ["thread", "kernel thread"])
@pytest.mark.parametrize(
    ("vhost", "expected"),
    [("", "0-1"), ('<kvmhooks:threads vhost="2"/>', "2"), ('<kvmhooks:threads vhost="keep"/>', "")],
)
def test_vhost_workers_run_beside_the_emulator(kind: str, vhost: str, expected: str) -> None:
    """QEMU's own threads from kernel 6.4, kernel threads before; or where the policy says."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm = guest(ISOLATION + vhost)
    world.start(vm)
    inherited = kernel.online - vm.cpus if kind == "kernel thread" else vm.emulator
    if kind == "kernel thread":
        tid = kernel.spawn(f"vhost-{vm.pid}", flags=KERNEL_THREAD, parent=2)
    else:
        tid = kernel.spawn(f"vhost-{vm.pid}", group=vm.scope, leader=vm.pid)
    kernel.pin(tid, CpuSet.parse("0-5"))
    other = kernel.spawn("vhost-1", flags=KERNEL_THREAD, parent=2)
    world.reconcile()
    assert str(kernel.affinity(tid)) == (expected or "0-5"), inherited
    assert kernel.affinity(other).isdisjoint(vm.cpus)
    world.stop(vm)
    assert kernel.record is None


def test_the_host_is_as_before_and_knows_nothing_of_dead_threads() -> None:
    """A thread's settings go with it."""
    kernel = Kernel("plain", 8, 10)
    before = effective_state(kernel)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert any(key.startswith("thread/") for key in world.state.records)
    world.stop(vm)
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_rehearsal_schedules_nothing(tmp_path: Path) -> None:
    """For a VM that runs already it would reach real threads."""
    kernel = Kernel("plain", 8, 4)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    plant(kernel, tmp_path)
    for tid, task in kernel.tasks.items():
        if task.leader == vm.pid:
            (tmp_path / f"proc/{vm.pid}/task/{tid}").mkdir(parents=True, exist_ok=True)
            text = (tmp_path / f"proc/{tid}/stat").read_text()
            (tmp_path / f"proc/{vm.pid}/task/{tid}/stat").write_text(text)
    (tmp_path / "run/libvirt/qemu").mkdir(parents=True)
    (tmp_path / "run/libvirt/qemu/a.pid").write_text(str(vm.pid))
    before = snapshot(tmp_path)
    claim = read_claim(vm.xml)
    assert claim is not None
    writes = [(write.path, write.value) for write in rehearse(claim, str(tmp_path))]
    assert (f"scheduler of thread {vm.pid + 1}", "fifo:1") in writes
    assert (f"cookie of thread {vm.pid}", "new") in writes
    assert snapshot(tmp_path) == before


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A real process of this test's own."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may schedule")
def test_a_real_thread_is_scheduled_and_given_back(process: subprocess.Popen[bytes]) -> None:
    """The class as chrt(1) would show it; its children do not inherit it."""
    system = System("/")
    os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))  # tests may run as idle
    assert system.scheduling(process.pid, "scheduler") == "other:0"
    system.set_scheduling(process.pid, "scheduler", "fifo:2")
    assert system.scheduling(process.pid, "scheduler") == "fifo:2"
    assert os.sched_getscheduler(process.pid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    system.set_scheduling(process.pid, "scheduler", "other:0")
    assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may schedule")
def test_real_clamps_and_cookies_are_set_or_refused_by_this_kernel(
    process: subprocess.Popen[bytes],
) -> None:
    """They are read back where the kernel has them; where not, it is the errno that we expect."""
    system = System("/")
    refused = refusal(lambda: system.set_scheduling(process.pid, "uclamp", "256:768"))
    assert (refused, system.scheduling(process.pid, "uclamp")) in {
        (0, "256:768"),
        (errno.EOPNOTSUPP, "0:0"),  # no CONFIG_UCLAMP_TASK
    }
    refused = refusal(lambda: system.set_scheduling(process.pid, "cookie", scheduling.NEW))
    assert refused in {0, errno.EINVAL, errno.ENODEV}  # no CONFIG_SCHED_CORE; no SMT
    if not refused:
        assert system.scheduling(process.pid, "cookie") != "0"
        assert system.scheduling(os.getpid(), "cookie") == "0"
        system.set_scheduling(process.pid, "cookie", "0")
        assert system.scheduling(process.pid, "cookie") == "0"
    assert refusal(lambda: system.scheduling(2**22 + 1, "uclamp")) == errno.ESRCH


def refusal(call: Callable[[], object]) -> int:
    """The errno of a call, or 0."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0
