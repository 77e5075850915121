"""A VM that runs: what its owner has changed of it meanwhile (``kvm_launch.changes``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from kvm_launch.changes import Changes, check_balloon, check_count, parse, with_pins, with_tuning
from kvm_launch.hold import Hold
from kvm_launch.process import SECOND
from kvm_launch.record import Account
from kvm_launch.vcpus import ANSWER_SECONDS, check_unplug, slots_of, there, version_of
from kvmhooks.errors import QemuError, UsageError
from kvmhooks.live.qmp import Monitor
from kvmhooks.live.threads import planned_cpus
from kvmhooks.placement import Plan, replan
from kvmhooks.spec import VmSpec
from kvmhooks.values import ByteSize, union

GUEST_SECONDS: Final = 60.0
"""How long a guest may take to give a vCPU back."""

_POLL_SECONDS: Final = 0.1


class Running:
    """One VM. Its requests come one after the other; each is carried out whole or taken back."""

    def __init__(
        self,
        plan: Plan,
        process: int,
        monitor: Monitor,
        hold: Hold,
        account: Account,
    ) -> None:
        self.plan = plan
        """Where it is now."""
        self._process = process
        self._monitor = monitor
        self._hold = hold
        self._account = account
        assert hold.survey is not None, "kvm-launch knows its host"
        self._survey = hold.survey

    @property
    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """What it answers to, by verb."""
        return {"set": self.set, "reload": self.reload, "monitor": self.monitor}

    async def monitor(self, _request: Mapping[str, Any]) -> list[str]:
        """Tell whether a client has the monitor that is for others: ``held`` or ``free``.

        What nobody is connected to is «disconnected:…» (``update_disconnected_filename()``,
        chardev/char-socket.c). Raises ``QemuError``.
        """
        chardevs = await self._monitor.execute(
            "query-chardev", seconds=ANSWER_SECONDS, shape=[{"filename": str, "label": str}]
        )
        for one in chardevs:
            if one["label"] == SECOND:
                return ["free" if one["filename"].startswith("disconnected:") else "held"]
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
            said = await self._carry_out(wanted, spec)
        except Exception:
            await self._take_back(before)
            raise
        self._account.life.note(f"changed: {'; '.join(said)}")
        return said

    async def _carry_out(self, wanted: Changes, spec: VmSpec | None) -> list[str]:
        """What the host may refuse comes first, what only the guest can give last."""
        said: list[str] = []
        if spec is not None:
            said += await asyncio.to_thread(self._tune, spec)
        if wanted.pins:
            threads = await self._monitor.threads()
            said += await asyncio.to_thread(self._pin, wanted, threads)
        if wanted.vcpus is not None:
            said += await self._plug(wanted.vcpus)
        if wanted.balloon is not None:
            said.append(await self._inflate(wanted.balloon))
        return said

    async def _take_back(self, before: Plan) -> None:
        """Have the pins and limits of ``before`` again."""
        if self.plan.spec.tuning != before.spec.tuning:
            await asyncio.to_thread(self._tune, before.spec)
        if planned_cpus(self.plan) != planned_cpus(before):
            threads = await self._monitor.threads()
            await asyncio.to_thread(self._move, before, threads)

    def _replan(self, threads: Mapping[str, int]) -> list[str]:
        with self._survey() as (host, others):
            found = replan(self.plan, host, others, memory_moves=False)
            if found is None:
                return ["it stays: nothing would be better"]
            said = self._move(placed_as(self.plan, found), threads)
        self._account.life.note(f"planned anew: {'; '.join(said)}")
        return said

    def _pin(self, wanted: Changes, threads: Mapping[str, int]) -> list[str]:
        with self._survey() as (host, others):
            taken = union(one.exclusive for one in others if one.uuid != self.plan.uuid)
            return self._move(with_pins(self.plan, wanted.pins, host.online - taken), threads)

    def _move(self, decided: Plan, threads: Mapping[str, int]) -> list[str]:
        """Go to where ``decided`` says; back if that is not to be."""
        before = self.plan
        try:
            self._hold.move(decided, self._process, threads)
        except Exception:
            self._hold.move(before, self._process, threads)
            raise
        self.plan = decided
        self._account.moved(decided)
        was = planned_cpus(before)
        return [
            f"{role}: CPUs {was[role]} -> {cpus}"
            for role, cpus in planned_cpus(decided).items()
            if cpus != was[role]
        ] or ["nothing moved"]

    def _tune(self, spec: VmSpec) -> list[str]:
        said = self._hold.limit(spec)
        self.plan = attrs.evolve(self.plan, spec=spec)
        return said or ["tuning: nothing changed"]

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
        await asyncio.to_thread(self._hold.gather, self.plan, self._process, threads)
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
    """``current`` on the CPUs of ``found``; all that the guest sees stays."""
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
