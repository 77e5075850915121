"""One table of a spec with other values, checked as if the file said so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from kvmhooks.errors import Problem, SpecError
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.structure import Unsuitable, structure_table


def changed(spec: VmSpec, table: str, keys: Mapping[str, Any]) -> VmSpec:
    """Return ``spec`` with the values ``keys`` in ``[table]``, by their keys (``memory.hard``).

    None is what stands where nothing is said. Raises ``SpecError`` for a key that is not there, a
    value that does not suit it, or one that contradicts another key.
    """
    value = getattr(spec, table)
    kind = type(value)
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        read = structure_table(_nested(given, spec.source, table), kind, table, Path("/"))
    except Unsuitable as error:
        raise SpecError(spec.source, error.problems) from error
    for key in keys:
        source = read if key in given else kind()
        value = _with(value, source, key.split("."), spec.source, f"{table}.{key}")
    made = attrs.evolve(spec, **{table: value})
    problems = tuple(inconsistencies(made))
    if problems:
        raise SpecError(spec.source, problems)
    return made


def _nested(flat: Mapping[str, Any], file: str, at: str) -> dict[str, Any]:
    """Return tables in tables. Raises ``SpecError`` for a key that is a value and a table."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        table: Any = made
        for name in above:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last in table:
            raise SpecError(file, (Problem(f"{at}.{key}", "a value and a table", "one of them"),))
        table[last] = value
    return made


def _with(value: Any, source: Any, path: list[str], file: str, at: str) -> Any:
    """Return ``value`` with the field at ``path`` as in ``source``. Raises ``SpecError``."""
    first, *rest = path
    if not attrs.has(type(value)) or first not in attrs.fields_dict(type(value)):
        raise SpecError(file, (Problem(at, "an unknown key", "one of that table"),))
    found = getattr(source, first)
    if rest:
        found = _with(getattr(value, first), found, rest, file, at)
    return attrs.evolve(value, **{first: found})
