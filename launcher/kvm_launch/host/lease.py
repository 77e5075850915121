"""A VM's claim on the host: taken before its QEMU exists, given back after its end.

Everything goes through ``kvmhooks.isolate``, as libvirt's hook does, so that both know each other's
VMs. An ordinary user, or a VM that asks for no CPUs of its own, holds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self

from attrs import define, field

from kvm_launch.host.isolation import translated, unable
from kvm_launch.host.vm_groups import VmGroups
from kvm_launch.tell.outcome import Isolated
from kvmhooks.errors import IsolationError, KvmhooksError, words_of
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import SECOND, second_identity_of
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.hook import entry, follower_unit
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.record.report import FAILED, REFUSAL, Report
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.registry.relocation import relocate
from kvmhooks.isolate.resources.vfio import DRIVER, driver_of
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.placement.claim import claim
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.threads import repin
from kvmhooks.signals import held_back, noted
from kvmhooks.spec.model import VmSpec

Survey = Callable[[], AbstractContextManager[Inventory]]
"""The inventory as it is now, while nobody else plans."""

SUFFIX: Final = SECOND
"""Of the groups of a second QEMU of a VM; no VM's name has it."""


@define(eq=False)
class Lease:
    """The host's resources of one VM, from ``with`` to its end; its QEMU runs and ends within."""

    _registry: Registry
    _supervisor: int = field(factory=os.getpid)
    """The process with which the claim ends until there is a QEMU."""
    _survey: Survey | None = field(default=None, kw_only=True)
    _on_claiming: Callable[[Plan], None] = field(default=lambda _: None, kw_only=True)
    """Called with a plan before what it asks for is taken, which may take a while."""
    _is_service: bool = field(default=False, kw_only=True)
    """systemd started us: QEMU gets a scope of its own then, apart from us."""
    _is_incoming: bool = field(default=False, kw_only=True)
    _is_second_instance: bool = field(default=False, kw_only=True)
    """It holds what it has under a name and a UUID beside those of the VM."""
    _groups: VmGroups = field(init=False)
    _name: str = field(default="", init=False)
    _claim: Claim | None = field(default=None, init=False)
    _omitted: str = field(default="", init=False)
    _left: tuple[str, ...] = field(default=(), init=False)
    _was_asked: bool = field(default=False, init=False)
    _report: Report = field(factory=Report, init=False)

    def __attrs_post_init__(self) -> None:
        """Begin without groups."""
        self._groups = VmGroups(self._registry.system)

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
            if self._claim is not None:
                self._give_back(self._claim)
            else:
                self._left = tuple(self._groups.remove())
        self._was_asked = bool(came)

    @property
    def survey(self) -> Survey | None:
        """The host as it is, for a VM that is to change while it runs."""
        return self._survey

    @property
    def is_incoming(self) -> bool:
        """The guest comes from another QEMU of this host, which holds what it has."""
        return self._is_incoming

    @property
    def claim(self) -> Claim | None:
        """The resources that are held; none without one."""
        return self._claim

    @property
    def has_cpus(self) -> bool:
        """It holds CPUs that are the VM's alone."""
        return self._claim is not None and bool(self._claim.exclusive)

    @property
    def omitted(self) -> str:
        """The reason why nothing is held though it was asked for."""
        return self._omitted

    @property
    def unlimited(self) -> str:
        """The reason why nothing is limited though ``[tuning]`` asks for it."""
        return self._groups.unlimited

    @property
    def left(self) -> tuple[str, ...]:
        """The things that could not be given back, once that was tried."""
        return self._left

    @property
    def was_asked(self) -> bool:
        """A signal asked for the end while that was done."""
        return self._was_asked

    @property
    def isolated(self) -> Isolated | None:
        """The resources that were held, for the account of the run."""
        if self._claim is None:
            return None
        refused = tuple(
            f"{change.key} ({change.why})" for change in self._report.of(REFUSAL, FAILED)
        )
        bound = self._claim.asks_of(FunctionDemand.KIND)
        return Isolated(self._claim.exclusive, refused, self._left, bound)

    def acquire(self, decided: Plan) -> None:
        """Take the claim of a plan: isolate its CPUs, set what it asks for, and bind its devices.

        Nothing is claimed for a VM that asks for none of it, nor where nothing can be had, but for
        one that asks strictly or has devices. Raises ``IsolationError``; nothing was changed then.
        """
        wanted = claim(decided)
        self._name = wanted.name + (SUFFIX if self._is_second_instance else "")
        if self._is_second_instance:
            wanted = wanted.by(second_identity_of(wanted.uuid))
        self._groups.plan(self._name, decided)
        if not (wanted.exclusive or wanted.has_devices or wanted.has_settings):
            return
        self._on_claiming(decided)
        self._omitted = unable(self._registry.system)
        if self._omitted and decided.spec.isolation.strict:
            raise IsolationError(f"isolation.strict: {self._omitted}")
        if self._omitted:
            check_bound(self._registry.system, wanted, self._omitted)
            return
        with translated(wanted.name), held_back():
            holder = Process.find(self._registry.system, self._supervisor)
            if holder is None:
                raise IsolationError(f"/proc/{self._supervisor}: found nothing, expected ourselves")
            self._registry.prepare(wanted, holder)
            self._claim = wanted
            self._report = self._registry.start(wanted)

    def adopt(self, pid: int) -> None:
        """Put the process that will be QEMU where it belongs; the claim lives as long as it.

        Raises ``IsolationError``.
        """
        is_due = self.has_cpus or (self._is_service and self._groups.can_be_apart)
        is_due |= self._claim is not None and self._claim.has_thread_settings

        def enter() -> None:
            self._groups.enter(pid, is_due=is_due)

        with translated(self._name):
            if self._claim is None:
                enter()
            else:
                self._registry.adopt(self._claim, pid, enter)

    def join(self, pids: Sequence[int]) -> None:
        """Put the VM's helpers beside its QEMU, before their first instruction.

        Raises ``IsolationError``.
        """
        self._groups.join(pids)

    def isolate(self, pid: int, threads: Mapping[str, int]) -> None:
        """Give QEMU's threads, told by their roles, groups of their own, and isolate those.

        Raises ``IsolationError``.
        """
        with translated(self._name):
            self._groups.place(pid, threads)
            self._isolate_groups(pid)

    def gather(self, decided: Plan, pid: int, threads: Mapping[str, int]) -> None:
        """Put new threads where they belong. Raises ``QemuError`` or ``IsolationError``."""
        with translated(self._name):
            self._groups.gather(pid, threads)
            repin(pid, decided, threads)
            self._isolate_groups(pid)

    def move(self, decided: Plan, pid: int, threads: Mapping[str, int]) -> None:
        """Put the threads of a VM that runs on other CPUs, and its isolation with them.

        Raises ``QemuError`` or ``IsolationError``: another VM has them, or the VM is in between.
        """
        held = self._claim

        def pin() -> None:
            self._groups.move(decided, pid, threads)
            repin(pid, decided, threads)

        with translated(self._name):
            if held is None or not held.exclusive:
                pin()
            else:
                try:
                    self._report = relocate(self._registry, held, decided.exclusive, pin)
                finally:
                    now = self._registry.look().held.get(held.key)
                    self._claim = held if now is None else now.claim
        self._groups.moved(decided)

    def limit(self, spec: VmSpec) -> list[str]:
        """Have ``[tuning]`` of ``spec`` in the groups of a VM that runs; what was written.

        Raises ``SpecError`` for what groups cannot do, ``IsolationError`` where the VM has none.
        """
        return self._groups.limit(spec)

    def follow(self) -> None:
        """Have what changes while the VM runs seen to: the same small process as libvirt's VMs."""
        if self._claim is not None:
            follower_unit.ensure(self._registry, self._claim.key)

    def _isolate_groups(self, pid: int) -> None:
        """Isolate the groups of a VM that has CPUs of its own, and set what its threads have."""
        if self._claim is not None and (self.has_cpus or self._claim.has_thread_settings):
            self._report = self._registry.started(self._claim, pid)

    def _give_back(self, held: Claim) -> None:
        """Drop the claim and remove the groups: the one whatever becomes of the other."""
        groups: list[str] = []

        def leave() -> None:
            groups.extend(self._groups.remove())

        is_owed = True
        try:
            report = self._registry.release(held.key, leave)
            is_owed = self._registry.owes(report) or report.is_pending
            left = self._registry.left_over(report)
            self._left = (*groups, *(f"{item.key}: {item.why}" for item in left))
        except (KvmhooksError, OSError, ValueError) as error:
            self._left = (*groups, words_of(error))
        if self._left or is_owed:
            entry.retry(self._registry.system.root)


def check_bound(system: System, wanted: Claim, omitted: str) -> None:
    """Check that what nobody binds now, as ``omitted`` says why, is bound already.

    Raises ``IsolationError``.
    """
    for address in wanted.asks_of(FunctionDemand.KIND):
        driver = driver_of(system, address)
        if driver != DRIVER:
            raise IsolationError(
                f"{wanted.name}: {address}: found it bound to {driver or 'nothing'}, expected "
                f"{DRIVER}: {omitted}, so nothing is bound now"
            )
