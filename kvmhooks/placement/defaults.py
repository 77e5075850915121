"""Defaults under a VM's own words: a profile's, and the administrator's.

Keys of a profile that a host cannot serve get the next value, or none. The administrator's settings
are those of ``/etc/kvmhooks/kvmhooks.toml``, from which every VM starts, and of ``vm.d/NAME.toml``
for one, as libvirt's hook has them; the words nearest to the VM have the say. The settings that
decide where a VM lives are in its description from then on, and all others stand beside it in the
plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.placement.model import Administered
from kvmhooks.spec.enabling import unenabled
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.tuning import policy_of

_REALTIME: Final = ("fifo", "rr")


def give_way(spec: VmSpec, error: PlanError) -> tuple[VmSpec, str] | None:
    """Return the spec with the next value of the default that ``error`` blames, and a sentence.

    None where the file itself said it, or the profile names nothing else for it.
    """
    refused = error.problem.at
    for place, default in enumerate(spec.applied):
        if not default.instead or refused not in {default.at, *default.blamed}:
            continue
        value, *others = default.instead
        left = attrs.evolve(default, instead=tuple(others))
        table, _, key = default.at.partition(".")
        before = getattr(getattr(spec, table), key)
        changed = attrs.evolve(getattr(spec, table), **{key: value})
        applied = (*spec.applied[:place], left, *spec.applied[place + 1 :])
        other = attrs.evolve(spec, **{table: changed, "applied": applied})
        if next(unenabled(other), None) is not None:
            return None  # the file says more that only the first value gives a meaning
        message = f"{default.at} is {_shown(value)} instead of {_shown(before)}"
        return other, f"profile {spec.profile}: {message}: {error.problem}"
    return None


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def administered_of(name: str, inventory: Inventory) -> dict[str, Administered]:
    """Return the administrator's settings for the VM of a name, the nearer file's before."""
    return {
        setting: Administered(value, file)
        for file, settings in inventory.settings_for(name)
        for setting, value in settings.items()
    }


def with_administered(
    spec: VmSpec, settings: Mapping[str, Administered]
) -> tuple[VmSpec, tuple[str, ...]]:
    """Return a VM's description with the administrator's words where it has none, and what was so.

    Raises ``PlanError`` for what its own words leave no room for: the hook refuses the same.
    """
    exclusive = _is_on(spec.isolation.exclusive, settings.get("isolation.exclusive"))
    strict = _is_on(spec.isolation.strict, settings.get("isolation.strict"))
    if exclusive and spec.cpu.placement != "dedicated":
        file = settings["isolation.exclusive"].file
        raise PlanError(
            "cpu.placement",
            f'"{spec.cpu.placement}", and isolation.exclusive in {file}',
            '"dedicated", or isolation.exclusive = false',
        )
    _check(spec, settings, is_exclusive=exclusive)
    given = {
        "isolation.exclusive": exclusive and not spec.isolation.exclusive,
        "isolation.strict": strict and not spec.isolation.strict,
    }
    cpu, siblings = spec.cpu, settings.get("isolation.siblings")
    if siblings is not None and siblings.value == "idle" and _may_be_alone(spec):
        cpu = evolve(cpu, smt="isolate")
        given["isolation.siblings"] = True
    isolation = evolve(spec.isolation, exclusive=exclusive, strict=strict)
    sentences = tuple(
        f"{name} is {settings[name].value}: {settings[name].file} says so"
        for name, is_given in given.items()
        if is_given
    )
    return evolve(spec, cpu=cpu, isolation=isolation), sentences


def has_own_class(spec: VmSpec) -> bool:
    """Return whether a VM itself says the real-time class of its vCPUs."""
    return spec.tuning.vcpus.scheduler in _REALTIME or spec.cpu.realtime


def _is_on(own: bool | None, default: Administered | None) -> bool:  # noqa: FBT001 -- a word
    if own is not None:
        return own
    return default is not None and default.value == "yes"


def _may_be_alone(spec: VmSpec) -> bool:
    return spec.cpu.placement != "shared" and spec.cpu.smt == "share"


def _check(spec: VmSpec, settings: Mapping[str, Administered], *, is_exclusive: bool) -> None:
    """Refuse what the administrator says and this VM cannot have. Raises ``PlanError``."""
    scheduler = settings.get("threads.vcpus")
    if scheduler is not None and not is_exclusive and not has_own_class(spec):
        raise PlanError(
            "isolation.exclusive",
            f"false, and threads.vcpus {scheduler.value} in {scheduler.file}",
            "true: any task on a CPU of such a vCPU would starve",
        )
    pages = settings.get("memory.hugepages")
    is_kept = pages is not None and pages.value == "keep"
    if is_kept and spec.memory.allocate and "memory.hugepages" not in policy_of(spec):
        raise PlanError(
            "memory.allocate",
            f"true, and memory.hugepages keep in {settings['memory.hugepages'].file}",
            'false, or policy.memory.hugepages = "allocate"',
        )
