"""Keys of a profile that a host cannot serve: they get the next value, or none."""

from __future__ import annotations

from typing import Any

import attrs

from kvmhooks.errors import PlanError
from kvmhooks.spec.enabling import unenabled
from kvmhooks.spec.model import VmSpec


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
