"""A host as the JSON of ``kvmhooks host --json``: the project's contract, sets as lists of CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.model import Host


def to_json(host: Host) -> dict[str, Any]:
    """Give the host as what ``json.dumps`` takes; null is «not known», as None is in the model."""
    made: dict[str, Any] = _plain(host)
    return made


def _plain(value: object) -> Any:
    if isinstance(value, CpuSet):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if attrs.has(type(value)):
        return {name: _plain(getattr(value, name)) for name in _names(type(value))}
    return value


def _names(kind: type) -> list[str]:
    return [field.name for field in attrs.fields(kind) if field.init]
