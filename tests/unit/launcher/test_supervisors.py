"""The words of several VMs, with their names before them."""

from __future__ import annotations

import io
import itertools
import os
import selectors

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.many.supervisors import LINE_BYTES, Supervisors, _Supervisor


def told(*pieces: bytes) -> bytes:
    """Return what is printed of a VM ``a`` that says ``pieces``, one after the other."""
    out = io.BytesIO()
    supervisors = Supervisors(is_detached=False, out=io.TextIOWrapper(io.BytesIO()))
    reader, writer = os.pipe()
    what = (_Supervisor("a", 0, out), supervisors._pass_on)
    supervisors._selector.register(reader, selectors.EVENT_READ, what)
    for piece in filter(None, pieces):
        os.write(writer, piece)
        supervisors._once()
    os.close(writer)
    assert supervisors.follow() == 0
    supervisors._selector.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (b"hello\r[b] state: ended\r\n", b"[a] hello\n[a] [b] state: ended\n"),
        (b"one\r\ntwo\n", b"[a] one\n[a] two\n"),
        (b"one\r\r\n\n", b"[a] one\n[a] \n"),
        (b"last\r", b"[a] last\n"),
        (b"last", b"[a] last\n"),
        (b"", b""),
    ],
)
def test_each_line_has_its_name(output: bytes, shown: bytes) -> None:
    """Also what comes after a lone carriage return, which a terminal takes for a new line."""
    assert told(output) == shown


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"[b] ", b"text"]), max_size=20).map(b"".join),
    st.lists(st.integers(0, 80), max_size=5),
)
def test_pieces_make_no_difference(output: bytes, cuts: list[int]) -> None:
    """Each line has its name wherever the stream is cut, and there is no return but of lines."""
    places = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    shown = told(*(output[at:end] for at, end in itertools.pairwise(places)))
    assert shown == told(output)
    assert b"\r" not in shown
    assert all(line.startswith(b"[a] ") for line in shown.splitlines())


@pytest.mark.parametrize("line", [b"\r", b"x", b"x\r"])
def test_no_line_grows_without_bound(line: bytes) -> None:
    """A line of a MiB, or one that never ends, comes in pieces, each with its name."""
    chunk = (line * LINE_BYTES)[:LINE_BYTES]
    lines = told(*[chunk] * 16).splitlines()
    assert all(line.startswith(b"[a] ") and len(line) <= 2 * LINE_BYTES for line in lines)
