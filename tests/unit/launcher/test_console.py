"""The guest's console is passed on byte by byte, and its report is kept."""

from __future__ import annotations

import io
import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.talk.console import Console
from kvmhooks.qemu.guest_report import MARK, MAX_BYTES

REPORT = MARK + b'"cpus":[]}'
TEXT = b"[ 0.1] booting\r\n\xff\x00[ 0.2] " + REPORT + b"\r\n[ 0.3] power down\r\n"


@given(st.lists(st.integers(0, len(TEXT)), max_size=6))
def test_chunks_make_no_difference(cuts: list[int]) -> None:
    """All of the stream is passed on wherever it is cut, and the report is the whole line."""
    out = io.BytesIO()
    console = Console(out)
    places = [0, *sorted(cuts), len(TEXT)]
    for at, end in itertools.pairwise(places):
        console.show(TEXT[at:end])
    assert (out.getvalue(), console.report) == (TEXT, REPORT)


def test_without_a_whole_line_there_is_no_report() -> None:
    """A line counts when it has ended."""
    console = Console(io.BytesIO())
    console.show(REPORT)
    assert console.report is None
    console.show(b"\n")
    assert console.report == REPORT


def test_the_last_report_counts() -> None:
    """A guest that boots twice reports twice."""
    console = Console(io.BytesIO())
    console.show(MARK + b"1}\n" + MARK + b"2}\nmore\n")
    assert console.report == MARK + b"2}"


def test_a_line_without_end_is_passed_on_and_not_kept() -> None:
    """A guest that never ends its line takes no more memory than a report may have."""
    out = io.BytesIO()
    console = Console(out)
    for _ in range(3):
        console.show(b"x" * MAX_BYTES)
    console.show(b"\n" + REPORT + b"\n")
    assert len(out.getvalue()) == 3 * MAX_BYTES + len(REPORT) + 2
    assert len(console._line) == 0
    assert console.report == REPORT
