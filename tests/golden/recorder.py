"""A plan that notes which of its fields are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


class Recorder:
    """Stands for an attrs object, and for all that is in it; ``read`` gets ``Class.field``."""

    def __init__(self, watched: Any, read: set[str]) -> None:
        object.__setattr__(self, "_watched", watched)
        object.__setattr__(self, "_read", read)

    def __getattr__(self, name: str) -> Any:
        made = type(self._watched)
        if name in attrs.fields_dict(made):
            self._read.add(f"{made.__name__}.{name}")
            return watch(getattr(self._watched, name), self._read)
        prop = getattr(made, name)
        if isinstance(prop, property) and prop.fget is not None:
            return prop.fget(self)
        return prop.__get__(self) if hasattr(prop, "__get__") else prop


def watch(value: Any, read: set[str]) -> Any:
    """The value with every attrs object in it replaced by one that notes."""
    if attrs.has(type(value)):
        return Recorder(value, read)
    if isinstance(value, tuple):
        return tuple(watch(each, read) for each in value)
    if isinstance(value, Mapping):
        return {key: watch(each, read) for key, each in value.items()}
    return value
