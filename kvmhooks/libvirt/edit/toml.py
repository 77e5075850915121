"""Tables as the text of a TOML file (https://toml.io/en/v1.0.0)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def to_toml(document: dict[str, Any]) -> str:
    """Return the text of a document of texts, whole numbers, booleans, lists and tables.

    The standard library's ``tomllib`` reads the document back from it.
    """
    return "\n".join(_table(document, "")) + "\n"


def _table(table: dict[str, Any], at: str) -> Iterator[str]:
    for key, value in table.items():
        if not _is_section(value):
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        name = f"{at}.{key}" if at else key
        if isinstance(value, dict):
            yield from ("", f"[{name}]")
            yield from _table(value, name)
        elif _is_section(value):
            for item in value:
                yield from ("", f"[[{name}]]")
                yield from _table(item, name)


def _is_section(value: Any) -> bool:
    is_tables = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) or is_tables


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
