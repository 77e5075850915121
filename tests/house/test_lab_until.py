"""A run of the lab whose time is over begins nothing more, and says what it has not proved."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.lab import conftest, proof


def _item(until: int | None) -> pytest.Item:
    config = SimpleNamespace(getoption={"--until": until}.__getitem__)
    return cast("pytest.Item", SimpleNamespace(config=config))


def _reason(until: int | None) -> str | None:
    """Return why a test does not begin, None if it does: a skip would else be this test's own."""
    try:
        conftest.pytest_runtest_setup(_item(until))
    except pytest.skip.Exception as skipped:
        return str(skipped)
    return None


@pytest.mark.parametrize(("seconds", "reason"), [(None, None), (3600, None), (-1, proof.NO_TIME)])
def test_a_test_begins_in_time_or_says_why_not(seconds: int | None, reason: str | None) -> None:
    """Also without a limit."""
    until = None if seconds is None else int(time.time()) + seconds
    assert _reason(until) == reason


def _report(name: str, outcome: str, text: str = "") -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=name,
        location=("", None, ""),
        keywords={},
        outcome=cast("Any", outcome),
        longrepr=("file", 1, text) if text else None,
        when="call",
        user_properties=[(proof.PROOF, (f"{name} is so.", "default"))],
    )


def test_what_was_not_begun_is_told_and_counts_as_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Apart from those that are skipped for another reason."""
    told = proof.Proof()
    told.pytest_runtest_logreport(_report("a", "passed"))
    told.pytest_runtest_logreport(_report("b", "skipped", f"Skipped: {proof.NO_TIME}"))
    told.pytest_runtest_logreport(_report("c", "skipped", "Skipped: run with --slow"))
    told.pytest_unconfigure(cast("Any", SimpleNamespace(getoption=lambda _: False)))
    lines = capsys.readouterr().out.split("\n")
    assert "  no time b is so. [default] 0 s" in lines
    assert "NOT PROVED, since the time was over on this machine: 1 of them." in lines
    assert "1 passed, 0 failed, 2 skipped, 0 tried once more" in lines


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["passed", "skipped"], pytest.ExitCode.OK),
        (["skipped"], pytest.ExitCode.NO_TESTS_COLLECTED),
        ([], pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
)
def test_a_run_that_proves_nothing_fails(outcomes: list[str], status: pytest.ExitCode) -> None:
    """Its worst end would else look like its best one."""
    told = proof.Proof()
    for outcome in outcomes:
        told.pytest_runtest_logreport(_report("a", outcome, "why" if outcome != "passed" else ""))
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    told.pytest_sessionfinish(cast("Any", session))
    assert session.exitstatus is status
