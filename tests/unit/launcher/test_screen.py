"""The screens: lines where nobody looks, tables on a terminal, little when asked so."""

from __future__ import annotations

import io
import re

import pytest

from kvm_launch.options import LaunchOptions
from kvm_launch.tell.outcome import Ended, Outcome
from kvm_launch.tell.screen import Quiet, Screen, work_of
from kvm_launch.tell.screens import screen_of
from kvm_launch.tell.states import Step, VmState
from kvm_launch.tell.tables import Terminal
from kvmhooks.placement import Plan
from kvmhooks.qemu.threads import ThreadPin
from kvmhooks.show.plan_text import picture
from kvmhooks.values import CpuSet
from tests.golden.cases import golden_plan

STEP = Step(VmState.PAUSED, "process [7]: stands still", 0)


class Tty(io.StringIO):
    """A terminal, as far as it is asked."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plan() -> Plan:
    return golden_plan("as_realtime", "divided")


def outcome(*, good: bool) -> Outcome:
    pin = ThreadPin("vCPU 0", 7, CpuSet({3}), CpuSet({3} if good else {3, 4}))
    ended = Ended((pin,), "the guest [powered] off", good, None, ("a word",))
    return Outcome(ended, (), None, None)


def shown(screen: Screen, plan: Plan, *, good: bool = True) -> str:
    """A whole life on a screen, as its reader sees it."""
    screen.working("planning")
    screen.line("accelerator: tcg, as asked for")
    screen.line("warning: something")
    screen.plan(plan)
    screen.step(Step(VmState.STARTING, "", 0))
    screen.step(STEP)
    screen.outcome(plan, outcome(good=good))
    assert isinstance(screen.out, io.StringIO)
    return screen.out.getvalue()


def test_lines_are_a_logs(plan: Plan) -> None:
    """Nothing but text, the plan as everywhere else."""
    assert shown(Screen(io.StringIO()), plan) == (
        f"accelerator: tcg, as asked for\nwarning: something\n{picture(plan)}"
        "state: starting\nstate: paused: process [7]: stands still\n"
        "thread  planned CPUs  thread id  affinity\n"
        "vCPU 0  3             7          3         as planned\n"
        "QEMU: a word\nend: the guest [powered] off\n"
    )


def test_a_terminal_has_the_same_words(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In colours and tables, and nothing is read as markup; a spinner never stays."""
    monkeypatch.setenv("TERM", "xterm-256color")
    output = shown(Terminal(Tty()), plan, good=False)
    assert "\x1b[" in output
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    for sentence in (*plan.why, *plan.warnings, "process [7]: stands still",
                     "NOT as planned", "end: the guest [powered] off"):  # fmt: skip
        assert sentence in words
    for pin in plan.vcpus:
        assert re.search(rf"vCPU {pin.vcpu} .* {pin.cpus}\b", words)


def test_no_colour_is_respected(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://no-color.org"""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", shown(Terminal(Tty()), plan)) is None


@pytest.mark.parametrize("good", [True, False])
def test_quiet_is_what_went_wrong(plan: Plan, good: bool) -> None:  # noqa: FBT001
    """Warnings always; the end only if it is none to be pleased with."""
    lines = shown(Quiet(io.StringIO()), plan, good=good).splitlines()
    warnings = ["warning: something", *(f"warning: {warning}" for warning in plan.warnings)]
    ending = [] if good else ["QEMU: a word", "end: the guest [powered] off"]
    assert lines == warnings + ending


@pytest.mark.parametrize(
    ("is_terminal", "term", "quiet", "kind"),
    [
        (True, "xterm", False, Terminal),
        (True, "dumb", False, Screen),
        (False, "xterm", False, Screen),
        (True, "xterm", True, Quiet),
    ],
)
def test_a_screen_suits_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,  # noqa: FBT001
    term: str,
    quiet: bool,  # noqa: FBT001
    kind: type,
) -> None:
    """A terminal, unless it is dumb; and what was asked for."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdout", Tty() if is_terminal else io.StringIO())
    assert type(screen_of(LaunchOptions(is_quiet=quiet))) is kind


def test_what_is_claimed_is_said(plan: Plan) -> None:
    """While it is waited for."""
    assert work_of(plan).startswith(f"claiming CPUs {plan.exclusive}, ")
    assert "huge page" in work_of(plan)
    assert work_of(golden_plan("as_general", "laptop")) == "preparing"
