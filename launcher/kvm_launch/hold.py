"""A VM's claim on the host: taken before its QEMU exists, given back after its end.

Everything goes through ``kvmhooks.isolate``, as libvirt's hook does, so that both know each other's
VMs. An ordinary user, or a VM that asks for no CPUs of its own, holds nothing.
"""

from __future__ import annotations

import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kvm_launch.cgroup import Tree, group_of
from kvm_launch.limits import Limits, differences, legacy_limits_of, limits_of, problems
from kvm_launch.outcome import Isolated
from kvmhooks.errors import IsolationError, KvmhooksError, SpecError
from kvmhooks.host import Host
from kvmhooks.isolate import gate, hook, service
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.functions import DRIVER, driver_of
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.report import FAILED, REFUSAL, Report
from kvmhooks.isolate.state import Process
from kvmhooks.isolate.store import Store
from kvmhooks.live.signals import held_back, noted
from kvmhooks.live.threads import EMULATOR, planned_cpus, repin
from kvmhooks.placement import Plan, Target, claim, plan
from kvmhooks.placement.holding import Holding
from kvmhooks.placement.plan import identity_of
from kvmhooks.placement.target import OLDEST
from kvmhooks.spec import VmSpec
from kvmhooks.values import CpuSet

ATTEMPTS: Final = 8
"""How often to plan anew when another VM has taken the CPUs between the plan and the claim."""


Survey = Callable[[], AbstractContextManager[tuple[Host, list[Claim]]]]
"""The host as it is now with what its VMs hold, while nobody else plans."""

RESERVED_SECONDS: Final = 60.0
"""How long CPUs are kept for a VM that is moved to them."""


SUFFIX: Final = "~"
"""Of the groups of a second QEMU of a VM; no VM's name has it."""

_ELSEWHERE: Final = str(uuid.UUID(int=0))


def twin_of(identity: str) -> str:
    """The UUID under which a second QEMU of a VM holds what it has."""
    return str(uuid.uuid5(uuid.UUID(identity), SUFFIX))


class Hold:
    """What one VM holds of the host, from ``with`` to its end; its QEMU runs and ends within."""

    def __init__(
        self, keeper: Keeper, supervisor: int | None = None, survey: Survey | None = None
    ) -> None:
        self.is_twin = False
        """Whether it holds what it has under a name and a UUID beside those of the VM."""
        self.claims: Callable[[Plan], None] = lambda _: None
        """Called with a plan before what it asks for is taken, which may take a while."""
        self.is_service = False
        """Whether systemd started us: QEMU gets a scope of its own then, apart from us."""
        self.arrives = False
        """Whether the guest comes from another QEMU of this host, which holds what it has."""
        self.survey = survey
        """The host as it is, for a VM that is to change while it runs."""
        self.claim: Claim | None = None
        """What is held; nothing without one."""
        self.omitted = ""
        """Why nothing is held though it was asked for."""
        self.unlimited = ""
        """Why nothing is limited though ``[tuning]`` asks for it."""
        self.left: tuple[str, ...] = ()
        """What could not be given back, once that was tried."""
        self.was_asked = False
        """Whether a signal asked for the end while that was done."""
        self._keeper = keeper
        self._supervisor = os.getpid() if supervisor is None else supervisor
        self._name = ""
        self._planned: dict[str, CpuSet] = {}
        self._limits: Limits = {}
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
        with noted() as came:
            if self.claim is not None:
                self._give_back(self.claim)
            else:
                self.left = tuple(self._remove_groups())
        self.was_asked = bool(came)

    def plan(
        self,
        spec: VmSpec,
        host: Host,
        others: Sequence[Claim | Holding] = (),
        target: Target = OLDEST,
        made: Plan | None = None,
    ) -> Plan:
        """Plan for a target around the VMs that live, and take what the plan claims.

        ``others`` are VMs that claim nothing. A plan that was ``made`` already is taken as it is,
        unless another VM has what it claims. Raises ``PlanError``, or ``IsolationError`` for what
        is refused; nothing was changed then.
        """
        for attempt in range(ATTEMPTS):
            claims = live_claims(self._keeper)
            beside = (*self.foreign(claims, spec), *others)
            decided = made or plan(spec, host, beside, target=target)
            try:
                self.take(decided)
            except IsolationError:
                nobody_came = made is None and live_claims(self._keeper) == claims
                if nobody_came or attempt == ATTEMPTS - 1:
                    raise
                made = None
            else:
                return decided
        raise AssertionError

    def foreign(self, claims: Iterable[Claim], spec: VmSpec) -> list[Claim]:
        """Claims, with that of the QEMU from which our guest comes as another VM's."""
        ours = {identity_of(spec), twin_of(identity_of(spec))} if self.arrives else set()
        return [one.by(_ELSEWHERE) if one.uuid in ours else one for one in claims]

    def take(self, decided: Plan) -> None:
        """Take the claim of a plan: isolate its CPUs from the host, and bind its devices.

        Nothing is claimed for a VM that asks for neither, nor where nothing can be had, but for one
        that asks strictly or has devices. Raises ``IsolationError``; nothing was changed then.
        """
        wanted = claim(decided)
        self._name = wanted.name + (SUFFIX if self.is_twin else "")
        if self.is_twin:
            wanted = wanted.by(twin_of(wanted.uuid))
        self._planned = _groups(decided)
        self._limits, self.unlimited = self._limits_of(decided.spec)
        if not (wanted.exclusive or wanted.has_devices):
            return
        self.claims(decided)
        self.omitted = unable(self._keeper.door)
        if self.omitted and decided.spec.isolation.strict:
            raise IsolationError(f"isolation.strict: {self.omitted}")
        if self.omitted:
            self._check_bound(wanted)
            return
        with _translated(wanted.name), held_back():
            holder = Process.find(self._keeper.door, self._supervisor)
            if holder is None:
                raise IsolationError(f"/proc/{self._supervisor}: found nothing, expected ourselves")
            self._keeper.prepare(wanted, holder)
            self.claim = wanted
            self._report = self._keeper.start(wanted)

    def adopt(self, pid: int) -> None:
        """Put the process that will be QEMU where it belongs; the claim lives as long as it.

        Raises ``IsolationError``.
        """
        is_apart = self.is_service and self._tree.has_scope and may_isolate(self._keeper.door)
        has_groups = self._limits or self.has_cpus or is_apart

        def enter() -> None:
            if has_groups:
                self._tree.enter(self._name, pid, self._limits)

        with _translated(self._name):
            if self.claim is None:
                enter()
            else:
                self._keeper.adopt(self.claim, pid, enter)

    def join(self, pids: Sequence[int]) -> None:
        """Put the VM's helpers beside its QEMU, before their first instruction.

        Raises ``IsolationError``.
        """
        with _translated(self._name):
            for pid in pids:
                self._tree.join(pid)

    def isolate(self, pid: int, threads: Mapping[str, int]) -> None:
        """Give QEMU's threads, told by their roles, groups of their own, and isolate those.

        Raises ``IsolationError``.
        """
        with _translated(self._name):
            self._tree.place(self._planned, lambda: self._groups_of(pid, threads), self._limits)
            self._isolate_groups(pid)

    def gather(self, decided: Plan, pid: int, threads: Mapping[str, int]) -> None:
        """Put new threads where they belong. Raises ``QemuError`` or ``IsolationError``."""
        with _translated(self._name):
            self._tree.move(lambda: self._groups_of(pid, threads))
            repin(pid, decided, threads)
            self._isolate_groups(pid)

    def move(self, decided: Plan, pid: int, threads: Mapping[str, int]) -> None:
        """Put the threads of a VM that runs on other CPUs, and its isolation with them.

        The CPUs are reserved before, and on record; where the vCPUs are then is what is claimed.
        Raises ``QemuError`` or ``IsolationError``: another VM has them, or the VM is in between.
        """
        planned = _groups(decided)
        keeper, held = self._keeper, self.claim

        def go() -> None:
            # KVM starts a thread of its own from the first vCPU that runs, and in its group.
            self._tree.move(lambda: self._groups_of(pid, threads))
            self._tree.put(planned)
            repin(pid, decided, threads)

        with _translated(self._name):
            if held is None or not held.exclusive:
                go()
            else:
                keeper.reserve(held.on(decided.exclusive), RESERVED_SECONDS)
                keeper.loosen(held.key)  # from a partition the kernel lets no thread go
                try:
                    go()
                finally:
                    self._report = keeper.tighten(held.key)
                    self.claim = keeper.look().held[held.key].claim
                if self.claim.exclusive != decided.exclusive:
                    raise IsolationError(
                        f"{self._name}: found CPUs {self.claim.exclusive} its own, expected "
                        f"{decided.exclusive}"
                    )
        self._planned = planned

    def limit(self, spec: VmSpec) -> list[str]:
        """Have ``[tuning]`` of ``spec`` in the groups of a VM that runs; what was written.

        Raises ``SpecError`` for what groups cannot do, ``IsolationError`` where the VM has none.
        """
        after, unlimited = self._limits_of(spec)
        self.unlimited = unlimited or self.unlimited
        if self.unlimited or not self._tree.is_made:
            why = self.unlimited or "it was started without [tuning] and isolation.exclusive"
            raise IsolationError(f"it has no control group of its own: {why}")
        changes = differences(self._limits, after)
        with _translated(self._name):
            self._tree.limit(changes)
        self._limits = after
        return [f"{place.group} {place.file}: {value}" for place, value in changes.items()]

    @property
    def has_cpus(self) -> bool:
        """Whether it holds CPUs that are the VM's alone."""
        return self.claim is not None and bool(self.claim.exclusive)

    def _isolate_groups(self, pid: int) -> None:
        """Isolate the groups of a VM that has CPUs of its own."""
        if self.claim is not None and self.has_cpus:
            self._report = self._keeper.started(self.claim, pid)

    def _groups_of(self, pid: int, threads: Mapping[str, int]) -> dict[str, str]:
        """Return the group of each of QEMU's threads; a role without one is the emulator's."""
        found = {str(tid): group_of(role) for role, tid in threads.items()}
        groups = {tid: group for tid, group in found.items() if group in self._planned}
        tasks = self._keeper.door.names(f"proc/{pid}/task")
        return {tid: groups.get(tid, EMULATOR) for tid in tasks}

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

    def _remove_groups(self) -> list[str]:
        """Remove the VM's groups; what could not be done."""
        try:
            self._tree.remove()
        except OSError as error:
            return [str(error)]
        return []

    def _limits_of(self, spec: VmSpec) -> tuple[Limits, str]:
        """What ``[tuning]`` asks of groups, or why nothing is limited though it asks for it.

        Raises ``SpecError`` for what groups cannot do.
        """
        is_unified = self._tree.is_unified
        found = tuple(problems(spec.tuning, is_unified=is_unified))
        if found:
            raise SpecError(spec.source, found)
        of = limits_of if is_unified else legacy_limits_of
        limits = of(spec.tuning, self._planned, self._number_of)
        if not limits:
            return {}, ""
        if not may_isolate(self._keeper.door):
            return {}, "only root can limit what a VM gets"
        return (limits, "") if self._tree.can_limit else ({}, "it takes control groups")

    def _number_of(self, path: Path) -> str:
        """The number of a block device. Raises ``IsolationError`` for what is none."""
        try:
            status = path.stat()
        except OSError as error:
            raise IsolationError(f"tuning.io: {path}: {error.strerror}") from error
        if not stat.S_ISBLK(status.st_mode):
            raise IsolationError(f"tuning.io: {path}: found no block device, expected a disk")
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"

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
            groups.extend(self._remove_groups())

        try:
            left = self._keeper.left_over(self._keeper.release(held.key, leave))
            self.left = (*groups, *(f"{one.key}: {one.why}" for one in left))
        except (KvmhooksError, OSError, ValueError) as error:
            self.left = (*groups, str(error))
        if self.left:
            hook.retry(self._keeper.door.root)


def _groups(decided: Plan) -> dict[str, CpuSet]:
    """The CPUs of each group of a VM's threads."""
    return {group_of(role): cpus for role, cpus in planned_cpus(decided).items()}


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
def _translated(name: str) -> Iterator[None]:
    """What the kernel refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise IsolationError(f"{name}: {error}") from error
