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
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from kvmhooks.spec.device import hints_of
from kvmhooks.spec.forms import RANGES, TEXT_FORMS, HugePages
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.structure import is_key
from kvmhooks.values import ByteSize, CpuSet, PciAddress

DIALECT = "https://json-schema.org/draft/2020-12/schema"


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


def schema() -> dict[str, Any]:
    """Return the schema as JSON types."""
    return {"$schema": DIALECT, "title": "A VM of kvmhooks", **_table(VmSpec)}


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


def _table(made: type) -> dict[str, Any]:
    told = descriptions(made.__module__)
    hints = hints_of(made)
    keys = [field for field in attrs.fields(made) if is_key(field)]
    return {
        "type": "object",
        "description": inspect.getdoc(made),
        "properties": {
            key.name: {
                **_value(hints[key.name]),
                "description": told[made.__name__, key.name],
            }
            for key in keys
        },
        "required": [key.name for key in keys if key.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def _value(made: Any) -> dict[str, Any]:
    origin = get_origin(made)
    if made in _SIMPLE:
        value = _SIMPLE[made]
    elif origin is Literal:
        value = {"enum": list(get_args(made))}
    elif origin is tuple:
        value = {"type": "array", "items": _value(get_args(made)[0])}
    elif origin in {Union, types.UnionType}:
        some = [_value(kind) for kind in get_args(made) if kind is not type(None)]
        value = some[0] if len(some) == 1 else {"anyOf": some}
    else:
        value = _table(made)
    return value
