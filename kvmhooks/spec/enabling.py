"""Keys that mean nothing without another: declared at their fields, refused where they are said.

``action: … = enabled_by("model", default="reset")`` says that ``action`` does nothing unless its
table's ``model`` has a value that switches something on. A key with a dot is one of another table
(``graphics.type``); a pair names the values that do (``on("type", "vnc", "spice")``). The JSON
Schema and the manual page say the same (``kvmhooks.spec.schema``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

from kvmhooks.errors import SHOWN, Problem

if TYPE_CHECKING:
    from kvmhooks.spec.model import VmSpec

KEY: Final = "enabled"
"""The rules of a field, in its metadata."""

MEANS: Final = "means"
"""In it, what is so where nothing is said, of a field whose default is None."""

SWITCHED_OFF: Final = (None, "none", ())
"""The values, beside false, with which a key switches nothing on."""


def is_off(value: object) -> bool:
    """Return whether a value switches nothing on."""
    return value is False or value in SWITCHED_OFF


@frozen
class Enabler:
    """A key, and the values with which it enables another."""

    key: str
    """A key of the same table, or with a dot the path of one of another table."""
    values: tuple[Any, ...] = ()
    """None of them: whatever is not switched off."""

    def enables(self, value: object) -> bool:
        """Return whether a value of the key enables the other."""
        if self.values:
            return value in self.values
        return not is_off(value)

    def path(self, table: str) -> str:
        """Return the path of the key, for one of the ``table``."""
        return self.key if "." in self.key or not table else f"{table}.{self.key}"

    def wanted(self, table: str) -> str:
        """Return what has to be said, as its author would write it."""
        beside = "" if self.values else " beside it"
        return f"{self.path(table).removesuffix(self.key)}{self.spelled}{beside}"

    @property
    def spelled(self) -> str:
        """The key with its values, as an author writes them."""
        values = [f'"{value}"' if isinstance(value, str) else "true" for value in self.values]
        if not values:
            return self.key
        return f"{self.key} = {' or '.join(filter(None, [', '.join(values[:-1]), values[-1]]))}"


Rule = tuple[Enabler, ...]
"""Keys of which one has to be there."""

Rules = tuple[Rule, ...]
"""All that must be fulfilled."""


def on(key: str, *values: Any) -> Enabler:
    """Return the enabler ``key`` with one of ``values``, or with any that switches it on."""
    return Enabler(key, values)


def enabled_by(
    *rules: str | Enabler | Rule, default: Any = None, means: Any = None, **metadata: Any
) -> Any:
    """Return a field whose key means nothing unless each of ``rules`` is fulfilled.

    A rule is a key, an ``Enabler``, or several of which one is enough. ``means`` is what is so
    where nothing is said, if the default does not tell.
    """
    told = {**metadata, KEY: tuple(map(_rule, rules))} | ({} if means is None else {MEANS: means})
    return attrs.field(default=default, metadata=told)


def _rule(rule: str | Enabler | Rule) -> Rule:
    if isinstance(rule, str):
        return (Enabler(rule),)
    return rule if isinstance(rule, tuple) else (rule,)


def is_across(rule: Rule) -> bool:
    """Return whether a rule is about a key of another table."""
    return any("." in enabler.key for enabler in rule)


def unsaid(field: attrs.Attribute[Any]) -> Any:
    """Return what is so where a key is not said."""
    return field.metadata.get(MEANS, field.default)


def rules_of(field: attrs.Attribute[Any]) -> Rules:
    """Return the rules of a field; most have none."""
    rules: Rules = field.metadata.get(KEY, ())
    return rules


def unenabled(spec: VmSpec, document: Mapping[str, Any] | None = None) -> Iterator[Problem]:
    """Yield each key that is said and does nothing, for want of one that enables it.

    Said is what stands in ``document``; without it, what is not its default. Nothing else needs to
    be true of a thing that is switched off, as it is by default.
    """
    yield from _in_table(spec, spec, document, "")


def _in_table(
    spec: VmSpec, table: Any, document: Mapping[str, Any] | None, at: str
) -> Iterator[Problem]:
    for field in attrs.fields(type(table)):
        value = getattr(table, field.name)
        if field.metadata.get("key", True) is not True or not _is_said(field, value, document):
            continue
        path = f"{at}.{field.name}" if at else field.name
        for rule in rules_of(field):
            if not any(enabler.enables(_value(spec, table, enabler.key)) for enabler in rule):
                expected = " or ".join(enabler.wanted(at) for enabler in rule)
                yield Problem(path, as_written(value), expected)
                break
        inner = None if document is None else document[field.name]
        if attrs.has(type(value)):
            yield from _in_table(spec, value, inner, path)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if attrs.has(type(item)):
                    table_of = None if inner is None else inner[index]
                    yield from _in_table(spec, item, table_of, f"{path}[{index}]")


def _is_said(
    field: attrs.Attribute[Any], value: object, document: Mapping[str, Any] | None
) -> bool:
    if value in (field.default, unsaid(field)) and is_off(value):
        return False
    return value != field.default if document is None else field.name in document


def _value(spec: VmSpec, table: Any, key: str) -> object:
    """Return the value of a key of ``table``, or at a path; None where its table is not there."""
    value = spec if "." in key else table
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def as_written(value: object) -> str:
    """Return a value as its author would write it, or the beginning of a long one."""
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is int:
        return str(value)
    if isinstance(value, tuple):
        return "an array"
    text = repr(str(value))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]}...'"
