"""``kvmhooks profiles`` and ``kvmhooks profiles show NAME``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from kvmhooks.spec.profiles import PROFILES, Default


def main(verb: str, argv: Sequence[str]) -> int:
    """List the profiles, or print what one of them sets and why."""
    arguments = parser_of(verb).parse_args(argv)
    names = [arguments.name] if arguments.part == "show" else list(PROFILES)
    if arguments.json:
        document = {name: _as_json(name) for name in names}
        print(json.dumps(document, indent=2))
        return 0
    for name in names:
        purpose, defaults = PROFILES[name]
        if arguments.part != "show":
            print(f"{name:<13} {purpose}")
            continue
        print(purpose)
        for default in defaults:
            print(f"\n{default.at} = {_value(default.value)}\n    {default.why}")
            print(f"    {_otherwise(default)}")
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parts = parser.add_subparsers(dest="part", metavar="show NAME")
    show = parts.add_parser("show", help="the settings of a profile, and why", allow_abbrev=False)
    show.add_argument("name", choices=sorted(PROFILES))
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    return parser


def _value(value: Any) -> str:
    if callable(value):
        return "as many as vCPUs, 8 at most"
    return json.dumps(value) if isinstance(value, bool | int | list) else f'"{value}"'


def _otherwise(default: Default) -> str:
    if not default.instead:
        return "where the host cannot: refused"
    return f"where the host cannot: {', then '.join(map(_value, default.instead))}"


def _as_json(name: str) -> dict[str, Any]:
    purpose, defaults = PROFILES[name]
    return {
        "purpose": purpose,
        "defaults": [
            {
                "key": default.at,
                "value": _value(default.value) if callable(default.value) else default.value,
                "why": default.why,
                "instead": [
                    value if isinstance(value, bool) else str(value) for value in default.instead
                ],
            }
            for default in defaults
        ],
    }
