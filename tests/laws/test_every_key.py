"""Laws over every key of ``vm.toml``, found by walking the spec's classes.

No key is named here: one that comes with a capability is held to the same.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import attrs
import jsonschema
import pytest

from kvmhooks.errors import Problem
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.device import hints_of
from kvmhooks.spec.forms import TEXT_FORMS
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.profiles import PROFILES, with_profile
from kvmhooks.spec.schema import schema
from kvmhooks.spec.structure import Unsuitable, is_key, structure

SCHEMA = schema()
FOLDER = Path("/vms")
LEAST: dict[str, Any] = {"name": "a", "cpu": {"vcpus": 2}, "memory": {"size": "1GiB"}}

Place = tuple[str, ...]
"""Names of tables and of the key in them; one of an array of tables ends in ``[]``."""


def keys(made: Any = VmSpec, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key with its type, those of tables inside of tables too."""
    hints = hints_of(made)
    for field in attrs.fields(made):
        if not is_key(field):
            continue
        hint = _present(hints[field.name])
        yield (*at, field.name), hint
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if attrs.has(inner):
            name = field.name if inner is hint else f"{field.name}[]"
            yield from keys(inner, (*at, name))


def _present(hint: Any) -> Any:
    """A type without None."""
    there = [kind for kind in get_args(hint) if kind is not type(None)]
    return there[0] if type(None) in get_args(hint) and len(there) == 1 else hint


KEYS = dict(keys())


def with_value(place: Place, value: Any, **keys: Any) -> tuple[dict[str, Any], str]:
    """A document that says so at a place, and the place's path."""
    document = {
        key: dict(content) if isinstance(content, dict) else content
        for key, content in LEAST.items()
    }
    document |= keys
    table = document
    path = []
    for name in place[:-1]:
        key = name.removesuffix("[]")
        path.append(key if key == name else f"{key}[0]")
        inner: dict[str, Any] = dict(table.get(key, {})) if key == name else {}
        table[key] = inner if key == name else [inner]
        table = inner
    table[place[-1]] = value
    return document, ".".join((*path, place[-1]))


def problems(document: dict[str, Any], *, also_between: bool = True) -> list[Problem]:
    """Return what is wrong with a document: single values, or else what there is between them."""
    made, _ = with_profile(document)
    try:
        spec = structure(made, FOLDER)
    except Unsuitable as error:
        return list(error.problems)
    return list(inconsistencies(spec)) if also_between else []


def schema_of(place: Place) -> Any:
    """Return what the JSON Schema says of a key."""
    node = SCHEMA
    for name in place:
        node = node["properties"][name.removesuffix("[]")]
        node = node["items"] if name.endswith("[]") else node
    return node


def _deep(levels: int, *, is_array: bool) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if is_array else {"a": value}
    return value


VALUES: dict[str, Any] = {
    "an empty text": "",
    "a text": "x y",
    "a long text": "x" * 100_000,
    "escapes": "\x1b[31m\x00\n",
    "zero": 0,
    "less": -1,
    "a fraction": 1.5,
    "a large number": 1 << 63,
    "a number that cannot be written": 1 << 40_000,
    "nan": math.nan,
    "infinity": -math.inf,
    "true": True,
    "false": False,
    "a time": dt.time(1, 2, 3),
    "a date": dt.date(2026, 1, 2),
    "a moment": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "an empty array": [],
    "an array of numbers": [1, -1, 1.5],
    "an array of texts": ["x", ""],
    "an array of arrays": [[], [1]],
    "an array of all": [1, "x", True, {}, [], dt.date(2026, 1, 2)],
    "an array of a table": [{}],
    "an empty table": {},
    "a table": {"x y": 1, "\x1b": 2},
    "deep arrays": _deep(50_000, is_array=True),
    "deep tables": _deep(50_000, is_array=False),
}
"""One of every type of TOML and more; few of them fit anywhere."""


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_that_is_none_is_told_with_its_place(value: Any) -> None:
    """A value that does not suit a key is refused there, wherever it is, and never with a
    traceback.
    """
    refused = 0
    beyond = ("deep arrays", "deep tables", "a number that cannot be written")
    is_for_both = not any(value is VALUES[name] for name in beyond)  # jsonschema takes none
    for place in KEYS:
        document, at = with_value(place, value)
        found = problems(document)
        told = [problem for problem in found if problem.at.startswith(at)]
        if is_for_both and not jsonschema.Draft202012Validator(schema_of(place)).is_valid(value):
            assert told, (at, list(map(str, found)))
        refused += bool(told)
        for problem in found:
            assert str(problem).isprintable(), problem
            assert len(str(problem)) < 1_200, problem
    print(f"{refused} of {len(KEYS)} keys refuse it")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_nothing_of_that(profile: str) -> None:
    """Its defaults go under whatever stands in a document, in the tables that they are for."""
    heads = {default.at.rpartition(".")[0] or default.at for default in PROFILES[profile][1]}
    tried = 0
    for place in KEYS:
        if place[0] not in heads and place[0].removesuffix("[]") not in {
            head.removesuffix("[]") for head in heads
        }:
            continue
        for value in VALUES.values():
            plain, at = with_value(place, value)
            document, _ = with_value(place, value, profile=profile)
            alone = problems(plain, also_between=False)
            found = {str(problem) for problem in problems(document)}
            assert {str(problem) for problem in alone if problem.at.startswith(at)} <= found, at
            tried += 1
    print(f"{tried} values under the profile {profile}")


UNFIT = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDCFF)]
UNFIT += ["\ufffe", "\uffff"]
"""What XML 1.0 has no place for, what is no UTF-8, and what ends a line."""


def texts() -> Iterator[tuple[Place, Any]]:
    """The keys that are texts, by themselves or in an array or among other types."""
    for place, hint in KEYS.items():
        item = get_args(hint)[0] if get_origin(hint) is tuple else hint
        some = (
            get_args(item)
            if get_origin(item) is Union or type(item).__name__ == "UnionType"
            else (item,)
        )
        if {str, Path, *TEXT_FORMS} & {kind for kind in some if kind.__hash__ is not None}:
            yield place, hint


@pytest.mark.parametrize(("place", "hint"), list(texts()), ids=str)
def test_no_text_has_what_xml_and_a_line_cannot(place: Place, hint: Any) -> None:
    """A character that a domain XML, an argument or a line has no place for is refused at load."""
    for letter in UNFIT:
        text = f"/a{letter}b"
        document, at = with_value(place, [text] if get_origin(hint) is tuple else text)
        found = [problem for problem in problems(document) if problem.at.startswith(at)]
        assert len(found) == 1
        assert str(found[0]).isprintable()


def test_a_folder_that_is_no_utf8_is_refused() -> None:
    """A relative path starts at its folder, whose name has to fit as well."""
    with pytest.raises(Unsuitable) as caught:
        structure({**LEAST, "disk": [{"path": "a"}]}, Path("/vms/\udcff"))
    (problem,) = caught.value.problems
    expected = "a path of one line without control characters, in UTF-8"
    assert str(problem) == f"disk[0].path: found '/vms/\\udcff/a', expected {expected}"
