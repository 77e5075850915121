"""The host ends as it was found, whatever happens in whatever order.

Hypothesis starts and stops up to four VMs on a model of a host, kills hooks at any of their writes,
makes writes fail, lets QEMU die unseen, restarts libvirtd, and changes masks as an administrator.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.record.comparison import UNKNOWN
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import KERNEL_THREAD, Kernel, nothing
from tests.isolate_model.world import (
    ISOLATION,
    Killed,
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RCU_SCHED = 3
NAMES = ("a", "b", "c", "d")
RICH = (
    ISOLATION + '<kvmhooks:memory numa_balancing="0" thp="never"/>'
    '<kvmhooks:power governor="performance"/>'
    '<kvmhooks:threads vcpus="fifo:1" uclamp_min="512" sched_core="vcpus"/>'
)
ERRORS = (errno.EIO, errno.EPERM, errno.EINVAL, errno.ENOSPC)


class Isolation(RuleBasedStateMachine):
    """The rules; ``flavour``, ``cpus`` and ``irqs`` are those of the host."""

    flavour = "systemd"
    release = ""
    cpus = 16
    irqs = 24

    @initialize()
    def boot(self) -> None:
        self.kernel = Kernel(self.flavour, self.cpus, self.irqs, self.release)
        self.home = self.kernel.tasks[self.kernel.libvirtd].group.path
        third = self.cpus // 3
        for mask in ({1}, {third, third + 1}, {self.cpus - 1}, {2, self.cpus - 2}):
            self.kernel.pin(self.kernel.spawn("canary", group=self.home), CpuSet(mask))
        self.world = World(self.kernel)
        self.expected = effective_state(self.kernel)
        del self.expected[f"task/{self.kernel.irqs[1].thread}"]  # where its interrupt is
        self.stranger = CpuSet()
        self.asked = requested_state(self.kernel)

    def _vm(self, name: str, *, has_policy: bool) -> Vm:
        width = self.cpus // 5
        first = self.cpus - width * (NAMES.index(name) + 1)
        policy = (RICH if name in "ab" else ISOLATION) if has_policy else ""
        return Vm(name, CpuSet(range(first, first + width)), CpuSet({0, 1}), policy)

    @rule(name=st.sampled_from(NAMES), has_policy=st.booleans(), at=st.integers(0, 90))
    def start(self, name: str, *, has_policy: bool, at: int) -> None:
        """Start a VM; its hooks die at a write, when there are so many."""
        if name not in self.world.vms:
            with self._killing(at), contextlib.suppress(Killed):
                self.world.start(self._vm(name, has_policy=has_policy))

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from(ERRORS), at=st.integers(0, 60))
    def start_with_failure(self, name: str, number: int, at: int) -> None:
        """One write of the hooks fails; the VM may start or not."""
        if name in self.world.vms:
            return
        kept = {
            key: value for key, value in self.expected.items() if not key.endswith("/effective")
        }
        self.expected = kept  # a mask that is right at the second attempt may be taken elsewhere
        with self._failing(at, number), contextlib.suppress(KvmhooksError, OSError):
            self.world.start(self._vm(name, has_policy=True))

    @precondition(lambda self: self.world.vms)
    @rule(data=st.data(), at=st.integers(0, 90))
    def stop(self, data: Any, at: int) -> None:
        """Stop a VM; the hook dies at a write, when there are so many."""
        name = data.draw(st.sampled_from(sorted(self.world.vms)))
        with self._killing(at), contextlib.suppress(Killed):
            self.world.stop(self.world.vms[name])

    @precondition(lambda self: self.world.vms)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        """QEMU is killed and nobody tells us."""
        name = data.draw(st.sampled_from(sorted(self.world.vms)))
        self.world.crash(self.world.vms[name])

    @rule()
    def restart_libvirtd(self) -> None:
        """A new daemon reconnects to its VMs."""
        self.expected.pop(f"task/{self.kernel.libvirtd}", None)
        self.world.restart_libvirtd()
        mask = str(self.kernel.online)
        self.expected[f"task/{self.kernel.libvirtd}"] = mask

    @rule(number=st.integers(0, 23), first=st.integers(0, 3))
    def administrator_sets_an_interrupt(self, number: int, first: int) -> None:
        """Their value stays, but for the CPUs that a VM owns while it does."""
        if self.kernel.irqs[number].is_managed:
            return
        mask = CpuSet({first, first + 1})
        self.kernel.put(f"proc/irq/{number}/smp_affinity_list", str(mask))
        self.kernel.interrupt(number)
        self.expected[f"irq/{number}"] = str(mask)
        self.expected.pop(f"irq/{number}/effective", None)  # the kernel chooses anew

    @precondition(lambda self: not self.stranger)
    @rule(data=st.data())
    def administrator_pins_a_kernel_thread(self, data: Any) -> None:
        """It keeps the mask, but for the CPUs that a VM owns while it does; of one with CPUs of a
        partition nobody can see those."""
        most = 3 if self.flavour == "partitions" else self.cpus * 3 // 4
        cpus = data.draw(st.sampled_from([{1, 2}, range(1, most - 1), range(1, most)]))
        self.kernel.pin(RCU_SCHED, CpuSet(cpus))
        self.expected[f"task/{RCU_SCHED}"] = str(CpuSet(cpus))

    @rule(value=st.sampled_from(["0", "1", "2"]))
    def administrator_sets_numa_balancing(self, value: str) -> None:
        """A value that is neither ours nor the original becomes the original."""
        path = "proc/sys/kernel/numa_balancing"
        if value != "0":
            self.kernel.put(path, value)
            self.expected[path] = value

    @rule()
    def a_driver_requests_an_interrupt(self) -> None:
        """It gets the default mask, narrowed or not."""
        if len(self.kernel.irqs) < 2 * self.irqs:
            self.expected[f"irq/{self.kernel.add_irq()}"] = str(self.kernel.online)

    @rule()
    def an_interrupt_comes(self) -> None:
        """Its thread follows it."""
        self.kernel.interrupt(1)

    @rule()
    def a_kernel_thread_is_born(self) -> None:
        """It is like all others in the end, and no owner of a CPU matters."""
        tid = self.kernel.spawn("psimon", flags=KERNEL_THREAD, parent=2)
        self.expected[f"task/{tid}"] = str(self.kernel.online)

    @precondition(lambda self: self.flavour == "partitions")
    @rule()
    def a_strangers_partition_comes_or_goes(self) -> None:
        """The CPUs that it takes meanwhile are nobody's original."""
        self.stranger = CpuSet({2, 3}) - self.stranger
        self.kernel.isolate("stranger.slice", self.stranger)
        for tid, task in self.kernel.tasks.items():
            if task.preferred:  # what the kernel forgets while no VM lives is not ours to know
                self.expected.pop(f"task/{tid}", None)

    @rule()
    def reconcile(self) -> None:
        """Everything is finished, and while a VM lives nothing else may use its CPUs.

        Nothing has drifted, and nobody is missing who asks for it.
        """
        self.world.reconcile()
        assert list(intruders(self.kernel, self.world)) == []
        assert self.world.drifted() == {}
        assert [row for row in self.world.compared().values() if row.state == UNKNOWN] == []

    @invariant()
    def originals_are_on_record(self) -> None:
        """Nothing differs from what is expected unless its knob is on record."""
        if not (self.world.state.records or self.world.vms or self.stranger):
            now = effective_state(self.kernel)
            assert {key: now.get(key) for key in self.expected} == self.expected

    def teardown(self) -> None:
        """All stop; one `reconcile` later the host is as it was, and nothing is on record."""
        if not hasattr(self, "world"):
            return
        for vm in list(self.world.vms.values()):
            self.world.stop(vm)
        self.world.reconcile()
        if self.stranger:
            self.a_strangers_partition_comes_or_goes()
        now = effective_state(self.kernel)
        irq = self.kernel.irqs[1]
        assert irq.is_moved or self.kernel.affinity(irq.thread) in {
            irq.effective,
            self.kernel.online,
        }
        if self.kernel.spreads_threads:  # a narrower mask would keep it from its interrupt for ever
            assert self.kernel.tasks[irq.thread].user_cpus in {None, self.kernel.possible}
        assert {key: now.get(key) for key in self.expected} == self.expected
        made = {key for key in now if key not in self.expected}
        assert all(key.startswith(("task/", "irq/")) for key in made)
        assert requested_state(self.kernel) == self.asked
        assert self.kernel.record is None

    @contextlib.contextmanager
    def _killing(self, at: int) -> Any:
        """Let the hook die at its write number ``at``."""
        yield from self._stepping(at, Killed(), is_final=True)

    @contextlib.contextmanager
    def _failing(self, at: int, number: int) -> Any:
        """Let write number ``at`` fail."""
        yield from self._stepping(at, OSError(number, "injected"), is_final=False)

    def _stepping(self, at: int, error: BaseException, *, is_final: bool) -> Any:
        left = at

        def step(what: str) -> None:
            nonlocal left
            del what
            left -= 1
            if left == 0 or (is_final and left < 0 < at):
                raise error

        self.kernel.step = step
        try:
            yield
        finally:
            self.kernel.step = nothing


@pytest.mark.parametrize(
    ("flavour", "release"),
    [("partitions", ""), ("partitions", "7.2.0"), ("systemd", ""), ("plain", ""), ("legacy", "")],
)
def test_the_host_ends_as_it_was_found(flavour: str, release: str) -> None:
    """Start, stop, crash, kill, restart, change and failure in any order, on five kinds of host."""
    facts = {"flavour": flavour, "release": release}
    machine = type(f"On{flavour.title()}", (Isolation,), facts)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _stranger_first(machine: Isolation) -> None:
    machine.start_with_failure(at=0, name="a", number=errno.EIO)
    machine.a_strangers_partition_comes_or_goes()
    machine.administrator_sets_an_interrupt(first=2, number=1)


def _interrupt_later(machine: Isolation) -> None:
    machine.start(at=0, name="a", has_policy=True)
    machine.world.stop(machine.world.vms["a"])
    machine.administrator_sets_an_interrupt(first=3, number=1)
    machine.a_strangers_partition_comes_or_goes()


def _two_cpus_later(machine: Isolation) -> None:
    _interrupt_later(machine)
    irq = machine.kernel.irqs[1]
    irq.mask = irq.effective = CpuSet({5, 6})
    irq.is_moved = True
    machine.expected["irq/1"] = "5-6"
    machine.an_interrupt_comes()


def _loosened(machine: Isolation) -> None:
    machine.start(at=0, name="a", has_policy=True)
    machine.world.registry.loosen(machine.world.vms["a"].key)
    machine.reconcile()


def _loosened_and_interrupted(machine: Isolation) -> None:
    _loosened(machine)
    machine.an_interrupt_comes()
    machine.reconcile()
    machine.world.stop(machine.world.vms["a"])
    machine.an_interrupt_comes()


def _loosened_and_tightened(machine: Isolation) -> None:
    _loosened(machine)
    machine.start(at=0, name="b", has_policy=True)
    machine.world.registry.tighten(machine.world.vms["a"].key)
    machine.reconcile()


@pytest.mark.parametrize(
    ("flavour", "release", "cpus"),
    [
        ("partitions", "", "1-2"),
        ("partitions", "", "0-7"),
        ("systemd", "", "0-11"),
        ("systemd", "6.5.0", "0-11"),
        ("plain", "", "0-11"),
        ("legacy", "", "0-11"),
    ],
)
@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
def test_a_kernel_thread_keeps_what_an_administrator_gave_it(
    flavour: str, release: str, cpus: str, *, is_seen: bool
) -> None:
    """Between two starts, whether a look was between them or not."""
    kernel = Kernel(flavour, 16, 4, release)
    world = World(kernel)
    world.start(Vm("b", CpuSet.parse("8-11"), CpuSet({0, 1})))
    kernel.pin(RCU_SCHED, CpuSet.parse(cpus))
    if is_seen:
        world.reconcile()
    world.start(Vm("a", CpuSet.parse("12-15"), CpuSet({0, 1})))
    assert list(intruders(kernel, world)) == []
    for vm in list(world.vms.values()):
        world.stop(vm)
    assert (str(kernel.tasks[RCU_SCHED].mask), kernel.record) == (cpus, None)


@pytest.mark.parametrize(
    "story",
    [
        _stranger_first,
        _interrupt_later,
        _two_cpus_later,
        _loosened,
        _loosened_and_interrupted,
        _loosened_and_tightened,
    ],
)
@pytest.mark.parametrize("release", ["", "6.8.0", "7.2.0"])
def test_the_thread_of_an_interrupt_ends_as_it_was_found(
    story: Callable[[Isolation], None], release: str
) -> None:
    """It follows its interrupt whenever that is moved later, whoever's partition has spread it."""
    machine = type("OnPartitions", (Isolation,), {"flavour": "partitions", "release": release})()
    machine.boot()
    story(machine)
    machine.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["partitions", "systemd", "plain", "legacy"])
def test_a_large_host_ends_as_it_was_found(flavour: str) -> None:
    """The same with 256 CPUs and 600 interrupts."""
    large = {"flavour": flavour, "cpus": 256, "irqs": 600}
    run_state_machine_as_test(
        type(f"Large{flavour.title()}", (Isolation,), large),
        settings=settings(
            max_examples=100,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
