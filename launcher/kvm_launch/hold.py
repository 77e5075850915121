"""A VM's claim on the host: taken before its QEMU exists, given back after its end.

Everything goes through ``kvmhooks.isolate``, as libvirt's hook does, so that both know each other's
VMs. An ordinary user, or a VM that asks for no CPUs of its own, holds nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from kvm_launch.cgroup import Tree, group_of
from kvm_launch.outcome import Isolated
from kvm_launch.stop import SIGNALS
from kvmhooks.errors import IsolationError, KvmhooksError
from kvmhooks.host import Host
from kvmhooks.isolate import gate, hook, service
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.functions import DRIVER, driver_of
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.report import FAILED, REFUSAL, Report
from kvmhooks.isolate.state import Process
from kvmhooks.isolate.store import Store
from kvmhooks.live.threads import EMULATOR, planned_cpus
from kvmhooks.placement import Plan, Target, claim, plan
from kvmhooks.placement.target import OLDEST
from kvmhooks.spec import VmSpec
from kvmhooks.values import CpuSet

ATTEMPTS: Final = 8
"""How often to plan anew when another VM has taken the CPUs between the plan and the claim."""


class Hold:
    """What one VM holds of the host, from ``with`` to its end; its QEMU runs and ends within."""

    def __init__(self, keeper: Keeper, supervisor: int | None = None) -> None:
        self.claim: Claim | None = None
        """What is held; nothing without one."""
        self.omitted = ""
        """Why nothing is held though it was asked for."""
        self.left: tuple[str, ...] = ()
        """What could not be given back, once that was tried."""
        self._keeper = keeper
        self._supervisor = os.getpid() if supervisor is None else supervisor
        self._planned: dict[str, CpuSet] = {}
        self._tree = Tree(keeper.door)
        self._report = Report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give everything back; ``left`` tells what could not be."""
        if self.claim is not None:
            with _uninterrupted():
                self._give_back(self.claim)

    def plan(
        self, spec: VmSpec, host: Host, others: Sequence[Claim] = (), target: Target = OLDEST
    ) -> Plan:
        """Plan for a target around the VMs that live, and take what the plan claims.

        ``others`` are VMs that claim nothing, as claims on the CPUs of their dedicated vCPUs.
        Raises ``PlanError``, or ``IsolationError`` for what is refused; nothing was changed then.
        """
        for _ in range(ATTEMPTS - 1):
            claims = live_claims(self._keeper)
            decided = plan(spec, host, (*claims, *others), target=target)
            try:
                self.take(decided)
            except IsolationError:
                if live_claims(self._keeper) == claims:
                    raise  # nobody came in between
            else:
                return decided
        decided = plan(spec, host, (*live_claims(self._keeper), *others), target=target)
        self.take(decided)
        return decided

    def take(self, decided: Plan) -> None:
        """Take the claim of a plan: isolate its CPUs from the host, and bind its devices.

        Nothing is claimed for a VM that asks for neither, nor where nothing can be had, but for one
        that asks strictly or has devices. Raises ``IsolationError``; nothing was changed then.
        """
        wanted = claim(decided)
        if not (wanted.exclusive or wanted.bound):
            return
        self.omitted = unable(self._keeper.door)
        if self.omitted and decided.spec.isolation.strict:
            raise IsolationError(f"isolation.strict: {self.omitted}")
        if self.omitted:
            self._check_bound(wanted)
            return
        with _translated(wanted):
            holder = Process.find(self._keeper.door, self._supervisor)
            if holder is None:
                raise IsolationError(f"/proc/{self._supervisor}: found nothing, expected ourselves")
            self._planned = {group_of(role): cpus for role, cpus in planned_cpus(decided).items()}
            self._keeper.prepare(wanted, holder)
            self.claim = wanted
            self._report = self._keeper.start(wanted)

    def adopt(self, pid: int) -> None:
        """Put the process that will be QEMU where it belongs; the claim lives as long as it.

        Raises ``IsolationError``.
        """
        if self.claim is not None:
            name = self.claim.name
            enter = (lambda: self._tree.enter(name, pid)) if self.claim.exclusive else _stay
            with _translated(self.claim):
                self._keeper.adopt(self.claim, pid, enter)

    def isolate(self, pid: int, threads: Mapping[str, int]) -> None:
        """Give QEMU's threads, told by their roles, groups of their own, and isolate those.

        Raises ``IsolationError``.
        """
        if self.claim is None or not self.claim.exclusive:
            return
        groups = {str(tid): group_of(role) for role, tid in threads.items()}
        names = self._keeper.door.names
        with _translated(self.claim):
            self._tree.place(
                self._planned,
                lambda: {tid: groups.get(tid, EMULATOR) for tid in names(f"proc/{pid}/task")},
            )
            self._report = self._keeper.started(self.claim, pid)

    def follow(self) -> None:
        """Have what changes while the VM runs seen to: the same small process as libvirt's VMs."""
        if self.claim is not None:
            service.ensure(self._keeper, self.claim.key)

    @property
    def isolated(self) -> Isolated | None:
        """What was held, for the account of the run."""
        if self.claim is None:
            return None
        refused = tuple(f"{one.key} ({one.why})" for one in self._report.of(REFUSAL, FAILED))
        return Isolated(self.claim.exclusive, refused, self.left, self.claim.bound)

    def _check_bound(self, wanted: Claim) -> None:
        """What nobody binds now has to be bound already. Raises ``IsolationError``."""
        for address in wanted.bound:
            driver = driver_of(self._keeper.door, address)
            if driver != DRIVER:
                raise IsolationError(
                    f"{wanted.name}: {address}: found it bound to {driver or 'nothing'}, expected "
                    f"{DRIVER}: {self.omitted}, so nothing is bound now"
                )

    def _give_back(self, held: Claim) -> None:
        """Drop the claim and remove the groups: the one whatever becomes of the other."""
        groups: list[str] = []

        def leave() -> None:
            try:
                self._tree.remove()
            except OSError as error:
                groups.append(str(error))

        try:
            left = self._keeper.left_over(self._keeper.release(held.key, leave))
            self.left = (*groups, *(f"{one.key}: {one.why}" for one in left))
        except (KvmhooksError, OSError, ValueError) as error:
            self.left = (*groups, str(error))
        if self.left:
            hook.retry(self._keeper)


def _stay() -> None:
    """QEMU stays in the groups that it was born into."""


def unable(door: Door) -> str:
    """Why no CPU can be isolated here; empty where it can."""
    if not may_isolate(door):
        return "only root can isolate CPUs and bind devices"
    if gate.exists(door.root, "etc/kvmhooks/disabled"):
        return "/etc/kvmhooks/disabled exists"
    try:
        hook.check_place(door.root)
    except IsolationError as error:
        return str(error)
    return ""


def keeper_of(door: Door) -> Keeper:
    """The keeper of a host."""
    return Keeper(door, Store(door.root), helper=[sys.executable, "-I", "-m", "kvmhooks.cli.main"])


def live_claims(keeper: Keeper) -> list[Claim]:
    """The claims of VMs that live: what a plan has to go around.

    Only root can know them. Raises ``IsolationError``.
    """
    return keeper.claims() if may_isolate(keeper.door) else []


def may_isolate(door: Door) -> bool:
    """Whether we are root, or the host is a tree of files."""
    return os.geteuid() == 0 or not door.is_real


@contextmanager
def _translated(claim: Claim) -> Iterator[None]:
    """What the kernel refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise IsolationError(f"{claim.name}: {error}") from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """The VM has ended; who asks for that now has nothing to wait for but some seconds of this."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
