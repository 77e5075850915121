"""The proof: each trial and its outcome, one sentence a line, the counts at the end."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest

from . import order

PROOF = "proof"

NO_TIME = "not begun: the time of the whole run was over"
"""The reason of a test that ``--until`` left out."""

LATE = "no time"
"""The outcome of such a test; it counts as skipped."""


@dataclass
class Proof:
    """A pytest plugin that remembers each test's sentence and outcome."""

    lines: list[tuple[str, str, str, float]] = field(default_factory=list)
    """Outcome, sentence, parameters, seconds."""
    seconds: dict[str, float] = field(default_factory=dict)
    """The time that each test took so far, its labs' restoring included."""
    again: list[tuple[str, str]] = field(default_factory=list)
    """Tests that were tried once more, each with what it failed with."""
    is_worker: bool = False
    """It is one of several processes: their reports all come to the first, which alone prints."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take each test's specification; one without is a mistake."""
        for item in items:
            function = getattr(item, "function", None)
            sentence = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
            if not sentence:
                raise pytest.UsageError(f"{item.nodeid} has no docstring that says what it proves")
            callspec = getattr(item, "callspec", None)
            # a report takes this along from the process that made it
            item.user_properties.append((PROOF, (sentence, callspec.id if callspec else "")))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome; a failure before or after the test itself counts as its own.

        A failure is told at once as well: a run whose time ends has no summary.
        """
        sentence, parameters = self._proof_of(report)
        total = self.seconds.get(report.nodeid, 0) + report.duration
        self.seconds[report.nodeid] = total
        outcome: str = report.outcome  # one more than pytest's is of pytest-rerunfailures
        if outcome == "rerun":
            self.again.append((order.name_of(report.nodeid), _first_line(report)))
        elif report.when == "call" or outcome != "passed":
            if report.when == "teardown":
                parameters = f"{parameters}, putting it away"
            if outcome == "skipped" and NO_TIME in report.longreprtext:
                outcome = LATE
            self.lines.append((outcome, sentence, parameters, total))
            if outcome == "failed" and not self.is_worker:
                name = order.name_of(report.nodeid)
                text = f"{name} failed after {total:.0f} s: {_first_line(report)}"
                print(f"\nlab: {text}", flush=True)

    @staticmethod
    def _proof_of(report: pytest.TestReport) -> tuple[str, str]:
        """The sentence and the parameters of a test."""
        found: object = dict(report.user_properties)[PROOF]
        assert isinstance(found, tuple | list)
        sentence, parameters = found
        return str(sentence), str(parameters)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that has proved nothing, though nothing in it failed."""
        is_good = session.exitstatus == pytest.ExitCode.OK
        if is_good and not self.is_worker and all(line[0] != "passed" for line in self.lines):
            print("\nlab: nothing was proved: no test was run to its end", flush=True)
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Print it below all else; a worker of another process has nothing to print."""
        if self.is_worker:
            return
        if config.getoption("--regen"):
            order.write(self.seconds.items())
        print("\nProved:")
        for outcome, sentence, parameters, seconds in self.lines:
            print(f"  {outcome:7} {sentence} [{parameters}] {seconds:.0f} s")
        late = [line for line in self.lines if line[0] == LATE]
        if late:
            print(f"\nNOT PROVED, since the time was over on this machine: {len(late)} of them.")
        if self.again:
            print("\nTried once more, as the server had gone:")
        for test, why in self.again:
            print(f"  {test}: {why}")
        counts = [
            f"{sum(line[0] in outcomes for line in self.lines)} {outcomes[0]}"
            for outcomes in (("passed",), ("failed",), ("skipped", LATE))
        ]
        print(f"\n{', '.join(counts)}, {len(self.again)} tried once more", flush=True)


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    return str(text).partition("\n")[0]
