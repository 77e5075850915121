"""The shapes of QEMU's answers, so that a hostile one is a message and no traceback.

Shapes are written as QAPI writes its types (docs/devel/qapi-code-gen.rst): a type, a list with the
shape of its items, or the members of an object, of which those with a ``*`` may be left out. More
members than are known are right: QEMU adds some in any version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from kvmhooks.errors import QemuError

Shape: TypeAlias = type[Any] | list[Any] | Mapping[str, Any]


def check(value: object, shape: Shape, at: str) -> None:
    """Raise ``QemuError`` where ``value``, found ``at`` a place of an answer, is no ``shape``."""
    if isinstance(shape, type):
        _check_kind(value, shape, at)
    elif isinstance(shape, list):
        _check_kind(value, list, at)
        assert isinstance(value, list)
        for number, item in enumerate(value):
            check(item, shape[0], f"{at}[{number}]")
    else:
        _check_kind(value, dict, at)
        assert isinstance(value, dict)
        for name, member in shape.items():
            key = name.removeprefix("*")
            if key in value:
                check(value[key], member, f"{at}.{key}")
            elif key == name:
                raise QemuError(f"{at}: found no {key!r} in QEMU's answer, expected one")


def _check_kind(value: object, kind: type[Any], at: str) -> None:
    is_right = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
    if not is_right:
        found = repr(value)[:80]
        raise QemuError(f"{at}: found {found} in QEMU's answer, expected {_NAMES[kind]}")


_NAMES = {
    bool: "true or false", dict: "an object", int: "a whole number", list: "a list", str: "a text"
}  # fmt: skip
