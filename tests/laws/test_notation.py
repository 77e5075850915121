"""The records between two calls of the hook are JSON for everybody else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.isolate.record import json as notation
from kvmhooks.isolate.record.state import Record

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]) | st.sampled_from('"\\%-= \udc80'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner) | st.lists(TEXTS, min_size=2),
)


@given(VALUES)
def test_anyone_reads_what_we_write(value: Any) -> None:
    """And so do we."""
    text = notation.to_text(value)
    assert json.loads(text) == value
    assert notation.from_text(text) == value


@given(VALUES, st.data())
def test_what_was_cut_or_damaged_is_a_value_error(value: Any, data: st.DataObject) -> None:
    """Or it is another value; nothing else is raised."""
    text = notation.to_text(value)
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    try:
        notation.from_text(text[:start] + data.draw(TEXTS) + text[end:])
    except ValueError:
        return


@pytest.mark.parametrize(
    "text", ["", "[", "[1", '{"a"', '{"a":1', "[1,]", "nil", "1 2", '"a', "[" * 9_999]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    """With a ``ValueError``, however deep it goes."""
    with pytest.raises(ValueError, match=r"."):
        notation.from_text(text)


@given(st.tuples(TEXTS, TEXTS, st.none() | TEXTS, st.none() | TEXTS, TEXTS, TEXTS))
def test_a_line_of_a_record_says_all(fields: tuple[Any, ...]) -> None:
    """The fields may be anything: blanks, the marks of a line, nothing."""
    key, original, ours, intent, identity, note = fields
    record = Record(original, ours=ours, intent=intent, identity=identity, note=note)
    key_read, read = Record.from_line(record.to_line(key))
    assert key_read == key
    assert [getattr(read, name) for name in Record.__slots__] == [
        getattr(record, name) for name in Record.__slots__
    ]
