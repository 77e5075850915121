"""Changes to a VM while it runs, as words such as ``vcpu.0=5``: pure.

=====================  ====================================================================
``vcpu.N=CPUS``        where a vCPU runs; ``iothread.N`` and ``emulator`` likewise
``vcpus=N``            how many of ``cpu.vcpus`` are there
``balloon=SIZE``       how much memory the balloon leaves to the guest
``tuning.KEY=VALUE``   a key of ``[tuning]`` that control groups know; ``none`` takes it back
=====================  ====================================================================
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

from kvmhooks.errors import PlanError, Problem, SpecError, UsageError, ValueFormatError
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.model import IothreadPin, Plan, VcpuPin
from kvmhooks.qemu.threads import EMULATOR, planned_cpus
from kvmhooks.spec.change import changed
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import has_device
from kvmhooks.values import ByteSize, CpuSet, union

if TYPE_CHECKING:
    from kvmhooks.host.model import Host

KEYS: Final = "vcpu.N, iothread.N, emulator, vcpus, balloon or tuning.…"

NONE: Final = "none"

_FIXED: Final = re.compile(r"tuning\.(?:vcpus|emulator|iothreads)\.(?:scheduler|priority)")
"""The tables that are settled before the first instruction."""


@frozen
class Changes:
    """The changes that were asked for."""

    pins: dict[str, CpuSet]
    """By role (``vCPU 0``)."""
    vcpus: int | None
    balloon: ByteSize | None
    tuning: dict[str, Any]
    """By key without ``tuning.``; None takes it back."""


def parse(words: Sequence[str]) -> Changes:
    """Read the words of a command line. Raises ``UsageError`` for the first that is wrong."""
    pins: dict[str, CpuSet] = {}
    vcpus, balloon = None, None
    tuning: dict[str, Any] = {}
    seen: set[str] = set()
    for word in words:
        key, sign, text = word.partition("=")
        if key in seen:
            raise UsageError(f"found {key!r} twice, expected each key once")
        seen.add(key)
        try:
            if not sign or not text:
                raise UsageError(f"found {word!r}, expected KEY=VALUE")
            if role := role_of(key):
                pins[role] = CpuSet.parse(text)
            elif key == "vcpus":
                vcpus = _count(text)
            elif key == "balloon":
                balloon = ByteSize.parse(text)
            elif _FIXED.fullmatch(key):
                raise UsageError(f"found {key!r}, expected what can change while the VM runs")
            elif key.startswith("tuning."):
                tuning[key.removeprefix("tuning.")] = None if text == NONE else _value(text)
            else:
                raise UsageError(f"found {key!r}, expected {KEYS}")
        except ValueFormatError as error:
            raise UsageError(f"{key}: {error}") from error
    return Changes(pins, vcpus, balloon, tuning)


def role_of(key: str) -> str:
    """Return ``vCPU 0`` for ``vcpu.0``; empty for what is no thread."""
    if key == EMULATOR:
        return EMULATOR
    found = re.fullmatch(r"(vcpu|iothread)\.(\d{1,4})", key)
    kinds = {"vcpu": "vCPU", "iothread": "iothread"}
    return f"{kinds[found[1]]} {int(found[2])}" if found else ""


def check_owners(pins: dict[str, CpuSet], strangers: Iterable[Holding], host: Host) -> None:
    """Raise ``PlanError`` for a thread that would run on what another VM has alone."""
    for stranger in strangers:
        own = stranger.alone(host)
        for role, cpus in pins.items():
            if not cpus.isdisjoint(own):
                expected = f"none of {own.brief()}, which are {stranger.name}'s alone"
                raise PlanError(role, f"CPUs {cpus.brief()}", expected)


def with_pins(plan: Plan, pins: dict[str, CpuSet], online: CpuSet) -> Plan:
    """Return the plan with threads on other CPUs.

    Raises ``PlanError`` for CPUs that are not there, a thread that the VM has not, a vCPU that
    would lose the CPU of its own, or one that would share it.
    """
    known = planned_cpus(plan)
    for role, cpus in pins.items():
        if role not in known:
            raise PlanError(role, "a VM without it", f"one of: {', '.join(known)}")
        if not cpus or not cpus <= online:
            expected = f"some of {online.brief()}, which are online"
            raise PlanError(role, f"CPUs {cpus.brief() or 'none'}", expected)
    vcpus = tuple(VcpuPin(pin.vcpu, pins.get(f"vCPU {pin.vcpu}", pin.cpus)) for pin in plan.vcpus)
    own = union(pin.cpus for pin in vcpus if pin.vcpu in plan.dedicated)
    for pin in vcpus:
        if pin.vcpu in plan.dedicated and len(pin.cpus) != 1:
            raise PlanError(
                f"vCPU {pin.vcpu}", f"CPUs {pin.cpus.brief()}", "one: it is a dedicated vCPU"
            )
        rest = union(other.cpus for other in vcpus if other.vcpu != pin.vcpu)
        if pin.vcpu in plan.dedicated and not pin.cpus.isdisjoint(rest):
            raise PlanError(
                f"vCPU {pin.vcpu}",
                f"CPU {pin.cpus.brief()}",
                "one on which no other vCPU of the VM runs",
            )
    iothreads = tuple(
        IothreadPin(pin.id, pins.get(f"iothread {pin.id}", pin.cpus)) for pin in plan.iothreads
    )
    emulator = pins.get(EMULATOR, plan.emulator)
    exclusive = own if plan.exclusive else plan.exclusive
    others = [
        (EMULATOR, emulator),
        *((f"iothread {iothread.id}", iothread.cpus) for iothread in iothreads),
    ]
    for role, cpus in others:
        if not cpus.isdisjoint(exclusive):
            expected = f"none of {exclusive.brief()}, which are the vCPUs' alone"
            raise PlanError(role, f"CPUs {cpus.brief()}", expected)
    return attrs.evolve(
        plan, vcpus=vcpus, iothreads=iothreads, emulator=emulator, exclusive=exclusive
    )


def with_tuning(spec: VmSpec, keys: dict[str, Any]) -> VmSpec:
    """Return the spec with other values of ``[tuning]``. Raises ``SpecError``."""
    return changed(spec, "tuning", keys)


def check_count(plan: Plan, count: int) -> None:
    """Raise ``SpecError`` unless so many vCPUs can be there."""
    if not 1 <= count <= len(plan.vcpus):
        expected = f"1 to {len(plan.vcpus)}, as many as cpu.vcpus allows"
        raise SpecError(plan.spec.source, (Problem("vcpus", str(count), expected),))


def check_balloon(plan: Plan, size: ByteSize) -> None:
    """Raise ``SpecError`` unless the guest has a balloon that can leave it this much memory."""
    spec = plan.spec
    if not has_device(spec, "balloon"):
        raise SpecError(spec.source, (Problem("balloon", "a VM without one", "balloon.enabled"),))
    most = ByteSize.kib(sum(cell.memory_kib for cell in plan.cells))
    if not 0 < size <= most:
        expected = f"up to {most}, the guest's memory"
        raise SpecError(spec.source, (Problem("balloon", str(size), expected),))


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise UsageError(f"vcpus: found {text!r}, expected how many of them")
    return int(text)


def _value(text: str) -> Any:
    """Return a value as TOML reads it; a text needs no quotes here."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):  # nothing in [tuning] is as deep as that
        return text
