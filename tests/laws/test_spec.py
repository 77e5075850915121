"""Laws of ``vm.toml``: the reader and the JSON Schema say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.enabling import unenabled
from kvmhooks.spec.schema import schema
from kvmhooks.spec.structure import Unsuitable, structure
from tests.laws.strategies import vm_documents

VALIDATOR = jsonschema.Draft202012Validator(schema())
FOLDER = Path("/vms")

WRONG: tuple[Any, ...] = ("", "x y", 0, -1, 1.5, True, False, [], [1], {}, {"x": 1}, "12", 1 << 40)
"""Values of every type of TOML; few of them fit anywhere."""


@given(vm_documents())
def test_what_is_right_is_accepted_by_both(document: dict[str, Any]) -> None:
    """A right document is structured without an inconsistency, and the schema allows it."""
    assert list(inconsistencies(structure(document, FOLDER))) == []
    VALIDATOR.validate(document)


@given(vm_documents())
def test_what_is_said_is_what_is_structured(document: dict[str, Any]) -> None:
    """Each value of a document stands in the spec under its own key."""
    spec = structure(document, FOLDER)
    for place, value in _leaves(document):
        found: Any = spec
        for step in place:
            found = found[step] if isinstance(step, int) else getattr(found, step)
        if isinstance(found, Path):
            assert found.is_absolute()
        elif place[-1] == "size":
            assert found == int(value.split("MiB")[0]) << 20
        else:
            assert str(found) == str(value)


@given(vm_documents(), st.data())
def test_an_unknown_key_is_refused_by_both(document: dict[str, Any], data: st.DataObject) -> None:
    """A key that no table has is refused wherever it stands, and its place is named."""
    place, table = data.draw(st.sampled_from(list(_tables(document))))
    table["colour"] = data.draw(st.sampled_from([1, "red"]))
    assert not VALIDATOR.is_valid(document)
    assert [at for at, found in _problems(document) if found == "an unknown key"] == [
        f"{place}.colour" if place else "colour"
    ]


@given(vm_documents(), st.data())
def test_any_other_value_is_judged_alike(document: dict[str, Any], data: st.DataObject) -> None:
    """With any value in any place, the reader and the schema accept or refuse together.

    What only the reader can tell, control characters in a text and a NUL in a path, is not tried.
    """
    place, table = data.draw(st.sampled_from([each for each in _tables(document) if each[1]]))
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = data.draw(st.sampled_from(WRONG))
    problems = _problems(document)
    assert VALIDATOR.is_valid(document) == (not problems)
    inside = f"{place}.{key}" if place else key
    assert all(at.startswith(inside) for at, found in problems if found != ALONE)


@given(vm_documents(), st.data())
def test_a_missing_key_is_missed_by_both(document: dict[str, Any], data: st.DataObject) -> None:
    """Without a key, the reader and the schema accept or refuse together."""
    _, table = data.draw(st.sampled_from([each for each in _tables(document) if each[1]]))
    del table[data.draw(st.sampled_from(sorted(table)))]
    assert VALIDATOR.is_valid(document) == (not _problems(document))


ALONE = "a key without the one that enables it"


def _problems(document: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        spec = structure(document, FOLDER)
    except Unsuitable as error:
        return [(problem.at, problem.found) for problem in error.problems]
    return [(problem.at, ALONE) for problem in unenabled(spec, document)]


def _tables(value: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every table with its place."""
    if isinstance(value, dict):
        yield at, value
        for key, inner in value.items():
            yield from _tables(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _tables(inner, f"{at}[{index}]")


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*at, index))
    else:
        yield at, value
