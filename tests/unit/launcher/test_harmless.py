"""A guest's console on a terminal that does not obey it."""

from __future__ import annotations

import io
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.talk.harmless import Harmless
from kvmhooks.wording import printable


def shown(*pieces: bytes) -> str:
    """Return what comes out."""
    out = io.BytesIO()
    harmless = Harmless(out)
    for piece in pieces:
        harmless.write(piece)
    return out.getvalue().decode()


HOSTILE = st.lists(
    st.sampled_from(
        [b"\x1b", b"[", b"]", b"3", b";", b"m", b"\r", b"\n", b"\xc2", b"\x9b", b"\x07", b" ", b"?",
         b"\x7f", b"text", "é".encode(), "\u202e".encode(), b"\xff", b"\0", b"\t"]
    )
).map(b"".join)  # fmt: skip


@given(st.one_of(HOSTILE, st.binary(max_size=100)))
def test_nothing_is_left_that_a_terminal_obeys(console: bytes) -> None:
    """Any output of a guest becomes lines, tabs, and characters that can be seen."""
    output = shown(console)
    assert output == printable(output)
    assert output.replace("\n", "").replace("\t", "").isprintable()


@given(HOSTILE, st.lists(st.integers(0, 100), max_size=8))
def test_pieces_make_no_difference(console: bytes, cuts: list[int]) -> None:
    """The stream may be cut anywhere."""
    places = [0, *sorted(min(cut, len(console)) for cut in cuts), len(console)]
    assert shown(*(console[at:end] for at, end in itertools.pairwise(places))) == shown(console)


@pytest.mark.parametrize(
    ("console", "output"),
    [
        (b"[ 0.1] booting\r\nlogin: ", "[ 0.1] booting\nlogin: "),
        (b"a\r\r\nb\rc\r", "a\nb\nc"),
        (b"\x1b[0;1;32m OK \x1b[0m\x1b[2J\x1b[?25h.", " OK ."),
        (b"\x1b]0;title\x07\x1bc", "\\u001b]0;title\\u0007\\u001bc"),
        ("é 日本 \u202e".encode(), "é 日本 \\u202e"),
    ],
)
def test_text_stays(console: bytes, output: str) -> None:
    """Lines, tabs and letters; colours and moves are left out, what is rare is shown."""
    assert shown(console) == output


@pytest.mark.parametrize("console", [b"\r", b"\x1b", b"\x1b[", b"\x1b[0", b"0", b"\xc2"])
def test_no_text_takes_long(console: bytes) -> None:
    """A MiB of the worst, at once and in pieces, in time that does not grow with its square."""
    begun = time.process_time()
    shown(console * (1 << 20))
    shown(*[console * (1 << 10)] * (1 << 10))
    assert time.process_time() - begun < 10
