"""The forms of what kvm-launch tells a person: lines, a terminal's tables, or next to nothing.

Modules that draw are loaded when there is something to draw: for a VM that is started quietly, only
once its QEMU runs (``life.preload``).
"""

from __future__ import annotations

from typing import Final, TextIO

from kvm_launch.tell.outcome import Outcome
from kvm_launch.tell.states import Step
from kvmhooks.placement.model import Plan
from kvmhooks.wording import counted, printable


class Screen:
    """Plain lines, as a log keeps them: without what a terminal would obey."""

    def __init__(self, out: TextIO) -> None:
        self.out: Final = out

    def working(self, on: str) -> None:
        """Show what is being done, until something else is said; no line of its own."""

    def line(self, text: str) -> None:
        """Show one line, or several."""
        print(printable(text), file=self.out, flush=True)

    def plan(self, plan: Plan) -> None:
        """Show where a VM will live, and why."""
        from kvmhooks.show.plan_text import picture

        print(printable(picture(plan)), end="", file=self.out, flush=True)

    def step(self, step: Step) -> None:
        """Show a state that the VM has reached."""
        self.line(f"state: {step}")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """Show how it went."""
        from kvm_launch.tell.show import outcome_lines

        self.line("\n".join(outcome_lines(plan, outcome)))


class Quiet(Screen):
    """Nothing but what went wrong."""

    def line(self, text: str) -> None:
        """Show only warnings."""
        if text.startswith("warning: "):
            super().line(text)

    def plan(self, plan: Plan) -> None:
        """Show only what has been left out."""
        for warning in plan.warnings:
            super().line(f"warning: {warning}")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """Show only an end that is none to be pleased with."""
        from kvm_launch.tell.show import outcome_words

        if outcome.exit_code != 0:
            super().line("\n".join(outcome_words(plan, outcome)))


def work_of(plan: Plan) -> str:
    """Return what has to be had of the host before the VM starts, in words."""
    pages = sum(cell.pages for cell in plan.cells if cell.is_huge)
    what = [
        f"CPUs {plan.exclusive}" if plan.exclusive else "",
        counted(pages, "huge page") if pages else "",
        counted(len(plan.spec.pci), "device") if plan.spec.pci else "",
    ]
    message = ", ".join(filter(None, what))
    return f"claiming {message}" if message else "preparing"
