"""The JSON Schema of ``vm.toml``, made from the spec's classes.

The string after a field in its class is the key's description; it is read from the source, since
Python keeps no docstrings of fields.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

from kvmhooks.spec.device import hints_of
from kvmhooks.spec.enabling import Enabler, Rule, is_across, is_off, rules_of, unsaid
from kvmhooks.spec.forms import RANGES, TEXT_FORMS, HugePages
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.spec.structure import is_key
from kvmhooks.spec.tuning import DESCRIPTION
from kvmhooks.values import ByteSize, CpuSet, PciAddress

DIALECT = "https://json-schema.org/draft/2020-12/schema"


Place = tuple[str, ...]
"""Names of tables, from the outermost; of an array of tables with ``[]`` behind it."""

_OFF: Final = ["none", False, []]
"""The values with which a key switches nothing on."""

_GIVEN: Final = frozenset(default.at for _, given in PROFILES.values() for default in given)
"""The keys that profiles give."""

_ITEM = "(\\^?[0-9]{1,5}|[0-9]{1,5}-[0-9]{1,5}(:[0-9]{1,5}/[0-9]{1,5})?)"
"""One item of a list of CPUs."""

_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Path: {"type": "string", "minLength": 1},
    ByteSize: {"type": "string", "pattern": "^[0-9]{1,15} *(KiB|MiB|GiB|TiB)$"},
    HugePages: {"enum": ["2MiB", "1GiB", "auto", False]},
    CpuSet: {"type": "string", "pattern": "^( *(" + _ITEM + " *(, *" + _ITEM + " *)*)?)$"},
    PciAddress: {
        "type": "string",
        "pattern": "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F][.][0-7]$",
    },
    **{
        number: {"type": "integer", "minimum": least, "maximum": most}
        for number, (least, most) in RANGES.items()
    },
    **{
        made: {"type": "string", "pattern": f"^({pattern})$"}
        for made, (pattern, _) in TEXT_FORMS.items()
    },
}
"""The schema of every type that is not made of others."""


@attrs.define
class Conditions:
    """The conditions on keys of several tables (``kvmhooks.spec.enabling``)."""

    across: list[dict[str, Any]] = attrs.field(factory=list)
    without_profile: list[dict[str, Any]] = attrs.field(factory=list)
    """Those that are asked for where no profile could fulfil them."""


def schema() -> dict[str, Any]:
    """Return the schema as JSON types."""
    found = Conditions()
    whole = _table(VmSpec, (), found)
    alone = {"if": {"not": {"required": ["profile"]}}, "then": {"allOf": found.without_profile}}
    whole["allOf"] = [*found.across, alone]
    return {"$schema": DIALECT, "title": "A VM of kvmhooks", **whole}


@functools.cache
def descriptions(module: str) -> dict[tuple[str, str], str]:
    """Return (class, field): what stands after the field in the source of the ``module``."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        (made.name, field.target.id): inspect.cleandoc(text.value.value)
        for made in tree.body
        if isinstance(made, ast.ClassDef)
        for field, text in zip(made.body, made.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _table(made: type, at: Place, conditions: Conditions) -> dict[str, Any]:
    """Return the schema of the table at a place; ``conditions`` gets those on other tables."""
    told = descriptions(made.__module__)
    hints = hints_of(made)
    keys = [field for field in attrs.fields(made) if is_key(field)]
    within: list[dict[str, Any]] = []
    for key in keys:
        for rule in rules_of(key):
            condition = _condition(key, rule, made, at)
            places = {".".join((*at, enabler.key)) for enabler in rule}
            if is_across(rule):
                is_given = bool(_GIVEN & {enabler.key for enabler in rule})
                (conditions.without_profile if is_given else conditions.across).append(condition)
            elif places & _GIVEN:
                conditions.without_profile.append(_at(at, condition))
            else:
                within.append(condition)
    return {
        "type": "object",
        "description": inspect.getdoc(made),
        "properties": {
            key.name: {
                **_value(hints[key.name], (*at, key.name), conditions),
                "description": " ".join([_about(key, told, made), *_needs(key)]),
            }
            for key in keys
        },
        "required": [key.name for key in keys if key.default is attrs.NOTHING],
        **({"allOf": within} if within else {}),
        "additionalProperties": False,
    }


def _about(key: attrs.Attribute[Any], told: Mapping[tuple[str, str], str], made: type) -> str:
    """Return the description of a key: that of a setting is in its table."""
    return str(key.metadata.get(DESCRIPTION) or told[made.__name__, key.name])


def _value(made: Any, at: Place, conditions: Conditions) -> dict[str, Any]:
    origin = get_origin(made)
    if made in _SIMPLE:
        value = _SIMPLE[made]
    elif origin is Literal:
        value = {"enum": list(get_args(made))}
    elif origin is tuple:
        of_items = (*at[:-1], f"{at[-1]}[]")
        value = {"type": "array", "items": _value(get_args(made)[0], of_items, conditions)}
    elif origin in {Union, types.UnionType}:
        some = [_value(kind, at, conditions) for kind in get_args(made) if kind is not type(None)]
        value = some[0] if len(some) == 1 else {"anyOf": some}
    else:
        value = _table(made, at, conditions)
    return value


def _needs(key: attrs.Attribute[Any]) -> Iterator[str]:
    """Yield the sentences on what enables a key (``kvmhooks.spec.enabling``)."""
    for rule in rules_of(key):
        yield f"Only with {' or '.join(enabler.spelled for enabler in rule)}."


def _condition(key: attrs.Attribute[Any], rule: Rule, made: type, at: Place) -> dict[str, Any]:
    """Return the condition that a key of the table at a place needs what ``rule`` says."""
    if is_across(rule):
        wanted = _some([_wanted(enabler) for enabler in rule])
        return {"if": _at(at, _said(key), is_there=True), "then": wanted}
    return {"if": _said(key), "then": _some([_allowed(made, enabler) for enabler in rule])}


def _some(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _said(key: attrs.Attribute[Any]) -> dict[str, Any]:
    """Return the schema of tables in which a key asks for something."""
    asking: dict[str, Any] = {"required": [key.name]}
    default = unsaid(key)
    if is_off(default) and default is not None:
        off = [] if default == () else default
        asking["properties"] = {key.name: {"not": {"const": off}}}
    return asking


def _wanted(enabler: Enabler) -> dict[str, Any]:
    """Return the schema of documents in which the key of another table enables."""
    *above, key = enabler.key.split(".")
    made: Any = VmSpec
    for name in above:
        hint = hints_of(made)[name]
        made = next((kind for kind in get_args(hint) if attrs.has(kind)), hint)
    table = _allowed(made, Enabler(key, enabler.values))
    return _at(tuple(above), table, is_there="required" in table)


def _allowed(made: type, enabler: Enabler) -> dict[str, Any]:
    """Return the schema of tables of a kind that have an enabler, said or by default."""
    value = {"enum": list(enabler.values)} if enabler.values else {"not": {"enum": _OFF}}
    allowed: dict[str, Any] = {"properties": {enabler.key: value}}
    if not enabler.enables(attrs.fields_dict(made)[enabler.key].default):
        allowed["required"] = [enabler.key]
    return allowed


def _at(at: Place, schema: dict[str, Any], *, is_there: bool = False) -> dict[str, Any]:
    """Return the schema of a document with such a table, or such ones, at a place."""
    for name in reversed(at):
        key = name.removesuffix("[]")
        if name != key:
            schema = {"contains": schema} if is_there else {"items": schema}
        schema = {"properties": {key: schema}, **({"required": [key]} if is_there else {})}
    return schema
