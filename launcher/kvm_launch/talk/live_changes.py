"""A VM that runs: what its owner has changed of it meanwhile (``kvm_launch.talk.changes``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from kvm_launch.talk.changes import (
    Changes,
    check_balloon,
    check_count,
    check_owners,
    parse,
    with_pins,
    with_tuning,
)
from kvm_launch.talk.vcpus import (
    ANSWER_SECONDS,
    check_unplug,
    slots_of,
    there,
    version_of,
)
from kvmhooks.errors import QemuError, UsageError
from kvmhooks.placement.replan import replan
from kvmhooks.qemu.threads import planned_cpus
from kvmhooks.values import ByteSize

if TYPE_CHECKING:
    from kvm_launch.host.lease import Lease
    from kvm_launch.tell.status import StatusReporter
    from kvmhooks.placement.model import Plan
    from kvmhooks.qemu.qmp import Monitor
    from kvmhooks.spec.model import VmSpec

SECOND: Final = "monitor1"
"""QEMU's name for the socket of the monitor that is for others (``socket_names.QMP_USER``)."""

GUEST_SECONDS: Final = 60.0
"""The time that a guest may take to give a vCPU back."""

_POLL_SECONDS: Final = 0.1


class RunningVm:
    """One VM. Its requests come one after the other; each is carried out whole or taken back."""

    def __init__(
        self,
        plan: Plan,
        process: int,
        monitor: Monitor,
        lease: Lease,
        reporter: StatusReporter,
    ) -> None:
        self.plan = plan
        """The place where it is now."""
        self._process = process
        self._monitor = monitor
        self._lease = lease
        self._reporter = reporter
        assert lease.survey is not None, "kvm-launch knows its host"
        self._survey = lease.survey

    @property
    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """The requests that it answers, by verb."""
        return {"set": self.set, "reload": self.reload, "monitor": self.monitor}

    async def monitor(self, _request: Mapping[str, Any]) -> list[str]:
        """Tell whether a client has the monitor that is for others: ``held`` or ``free``.

        A socket without a client is «disconnected:…» (``update_disconnected_filename()``,
        chardev/char-socket.c). Raises ``QemuError``.
        """
        chardevs = await self._monitor.execute(
            "query-chardev", seconds=ANSWER_SECONDS, shape=[{"filename": str, "label": str}]
        )
        for chardev in chardevs:
            if chardev["label"] == SECOND:
                return ["free" if chardev["filename"].startswith("disconnected:") else "held"]
        raise QemuError(f"query-chardev: found no {SECOND!r} in QEMU's answer, expected one")

    async def reload(self, _request: Mapping[str, Any]) -> list[str]:
        """Move it to better CPUs of the host as it is now, if there are any; its memory stays.

        Raises ``PlanError`` when it may not stay where it is, and fits nowhere else.
        """
        threads = await self._monitor.threads()
        return await asyncio.to_thread(self._replan, threads)

    async def set(self, request: Mapping[str, Any]) -> list[str]:
        """Change what the words of a request say; all of them are checked first.

        Raises ``KvmhooksError``.
        """
        words = request.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"words: found {repr(words)[:80]}, expected a list of KEY=VALUE")
        wanted = parse(words)
        if wanted.vcpus is not None:
            check_count(self.plan, wanted.vcpus)
            found = len(there(await slots_of(self._monitor)))
            version = await version_of(self._monitor)
            check_unplug(self.plan, version, found=found, count=wanted.vcpus)
        if wanted.balloon is not None:
            check_balloon(self.plan, wanted.balloon)
        spec = with_tuning(self.plan.spec, wanted.tuning) if wanted.tuning else None
        before = self.plan
        try:
            messages = await self._carry_out(wanted, spec)
        except Exception:
            await self._take_back(before)
            raise
        self._reporter.life.report(f"changed: {'; '.join(messages)}")
        return messages

    async def _carry_out(self, wanted: Changes, spec: VmSpec | None) -> list[str]:
        """Carry changes out: first those that the host may refuse, last what only the guest can
        give.
        """
        messages: list[str] = []
        if spec is not None:
            messages += await asyncio.to_thread(self._tune, spec)
        if wanted.pins:
            threads = await self._monitor.threads()
            messages += await asyncio.to_thread(self._pin, wanted, threads)
        if wanted.vcpus is not None:
            messages += await self._plug(wanted.vcpus)
        if wanted.balloon is not None:
            messages.append(await self._inflate(wanted.balloon))
        return messages

    async def _take_back(self, before: Plan) -> None:
        """Have the pins and limits of ``before`` again."""
        if self.plan.spec.tuning != before.spec.tuning:
            await asyncio.to_thread(self._tune, before.spec)
        if planned_cpus(self.plan) != planned_cpus(before):
            threads = await self._monitor.threads()
            await asyncio.to_thread(self._move, before, threads)

    def _replan(self, threads: Mapping[str, int]) -> list[str]:
        with self._survey() as inventory:
            found = replan(self.plan, inventory, memory_moves=False)
            if found is None:
                return ["it stays: nothing would be better"]
            messages = self._move(placed_as(self.plan, found), threads)
            new = [each for each in found.warnings_of_place if each not in self.plan.warnings]
            messages += [f"warning: {each}" for each in new]
        self._reporter.life.report(f"planned anew: {'; '.join(messages)}")
        return messages

    def _pin(self, wanted: Changes, threads: Mapping[str, int]) -> list[str]:
        with self._survey() as inventory:
            check_owners(wanted.pins, inventory.others_of(self.plan.uuid))
            decided = with_pins(self.plan, wanted.pins, inventory.host.online)
            return self._move(decided, threads)

    def _move(self, decided: Plan, threads: Mapping[str, int]) -> list[str]:
        """Go to where ``decided`` says; back if that is not to be."""
        before = self.plan
        try:
            self._lease.move(decided, self._process, threads)
        except Exception:
            self._lease.move(before, self._process, threads)
            raise
        self.plan = decided
        self._reporter.moved(decided)
        was = planned_cpus(before)
        return [
            f"{role}: CPUs {was[role]} -> {cpus}"
            for role, cpus in planned_cpus(decided).items()
            if cpus != was[role]
        ] or ["nothing moved"]

    def _tune(self, spec: VmSpec) -> list[str]:
        messages = self._lease.limit(spec)
        self.plan = attrs.evolve(self.plan, spec=spec)
        return messages or ["tuning: nothing changed"]

    async def _plug(self, count: int) -> list[str]:
        """Plug vCPUs in, or have the guest give some back, until ``count`` are there."""
        slots = await slots_of(self._monitor)
        present = list(there(slots))
        absent = [at for at in range(len(slots)) if at not in present]
        for at in absent[: max(0, count - len(present))]:
            arguments = {"driver": slots[at]["type"], "id": f"vcpu{at}", **slots[at]["props"]}
            await self._monitor.execute("device_add", arguments)
        for at in reversed(present[count:]):
            await self._unplug(at, slots[at]["qom-path"])
        threads = await self._monitor.threads()
        await asyncio.to_thread(self._lease.gather, self.plan, self._process, threads)
        return [f"vcpus: {len(present)} -> {sum(role.startswith('vCPU') for role in threads)}"]

    async def _unplug(self, number: int, path: str) -> None:
        """Have the guest give a vCPU back, which it may refuse to do. Raises ``QemuError``."""
        await self._monitor.execute("device_del", {"id": path})
        until = time.monotonic() + GUEST_SECONDS
        while f"vCPU {number}" in await self._monitor.threads():
            if time.monotonic() > until:
                raise QemuError(
                    f"vCPU {number}: the guest has not given it back in {GUEST_SECONDS:g} s"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _inflate(self, size: ByteSize) -> str:
        await self._monitor.execute("balloon", {"value": int(size)})
        has = await self._monitor.execute("query-balloon", shape={"actual": int})
        return (
            f"balloon: asked for {size}, the guest has {ByteSize.kib(has['actual'] >> 10)} so far"
        )


def placed_as(current: Plan, found: Plan) -> Plan:
    """Return ``current`` on the CPUs of ``found``; all that the guest sees stays."""
    return attrs.evolve(
        current,
        vcpus=found.vcpus,
        emulator=found.emulator,
        iothreads=found.iothreads,
        vhost=found.vhost,
        exclusive=found.exclusive,
        dedicated=found.dedicated,
        idle=found.idle,
        housekeeping=found.housekeeping,
        score=found.score,
        why=found.why,
    )
