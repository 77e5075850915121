"""Where kvm-launch tells a person what happens: lines, a terminal's tables, or next to nothing.

The guest's console goes to the same place by itself. rich is loaded for a terminal only.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from kvm_launch.life import State, Step
from kvm_launch.outcome import Outcome
from kvm_launch.show import outcome_lines, outcome_rows, outcome_words
from kvmhooks.output import Plain
from kvmhooks.placement import Plan
from kvmhooks.render.picture import HEADS, headline, picture, rows, sentences
from kvmhooks.wording import counted, printable

if TYPE_CHECKING:
    from rich.status import Status

COLOURS: Final = {
    State.RUNNING: "green",
    State.ENDED: "bold",
    State.SHUTTING_DOWN: "yellow",
}


class Screen:
    """Plain lines, as a log keeps them: without what a terminal would obey."""

    def __init__(self, out: TextIO) -> None:
        self.out: Final = out

    def working(self, on: str) -> None:
        """What is being done, until something else is said; no line of its own."""

    def line(self, text: str) -> None:
        """One line, or several."""
        print(printable(text), file=self.out, flush=True)

    def plan(self, plan: Plan) -> None:
        """Where a VM will live, and why."""
        print(printable(picture(plan)), end="", file=self.out, flush=True)

    def step(self, step: Step) -> None:
        """A state that the VM has reached."""
        self.line(f"state: {step}")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """How it went."""
        self.line("\n".join(outcome_lines(plan, outcome)))


class Styled(io.TextIOBase):
    """A stream's terminal for rich, whose own colours are obeyed."""

    def __init__(self, out: Plain) -> None:
        super().__init__()
        self._out = out

    def write(self, text: str) -> int:
        """Write it as it is."""
        self._out.flush()
        self._out.buffer.write(text.encode(self._out.encoding, "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Flush what is below."""
        self._out.flush()

    def fileno(self) -> int:
        """Give the descriptor of the terminal."""
        return self._out.fileno()

    def isatty(self) -> bool:
        """Say whether it is one."""
        return self._out.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich asks for it
        """How its text is written."""
        return self._out.encoding


class Quiet(Screen):
    """Nothing but what went wrong."""

    def line(self, text: str) -> None:
        """Only warnings."""
        if text.startswith("warning: "):
            super().line(text)

    def plan(self, plan: Plan) -> None:
        """Only what has been left out."""
        for warning in plan.warnings:
            super().line(f"warning: {warning}")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """Only an end that is none to be pleased with."""
        if outcome.exit_code != 0:
            super().line("\n".join(outcome_words(plan, outcome)))


class Terminal(Screen):
    """Tables, colours, and what is being done; NO_COLOR and a dumb terminal are respected."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        from rich.console import Console

        styled: Any = Styled(out) if isinstance(out, Plain) else out
        self._console: Final = Console(file=styled, highlight=False, soft_wrap=True, emoji=False)
        self._status: Status | None = None

    def working(self, on: str) -> None:
        """A spinner with a few words, until the guest's console needs the terminal."""
        from rich.text import Text

        self._rest()
        self._status = self._console.status(Text(printable(f"{on} …")))
        self._status.start()

    def line(self, text: str) -> None:
        """Warnings stand out."""
        self._rest()
        is_warning = text.startswith("warning: ")
        self._print(text, style="yellow" if is_warning else None)

    def plan(self, plan: Plan) -> None:
        """A table of threads, and the reasons below it."""
        self._rest()
        self._table(headline(plan), HEADS, rows(plan))
        for sentence in sentences(plan):
            is_warning = sentence.startswith("warning: ")
            self._print(sentence, style="yellow" if is_warning else "dim")

    def step(self, step: Step) -> None:
        """The state in its colour; what comes next is said until it is reached."""
        self._rest()
        style = COLOURS.get(step.state, "cyan")
        self._console.print(f"[{style}]{step.state}[/]", end="")
        self._print(f": {step.why}" if step.why else "")
        if step.state is State.STARTING:
            self.working("booting")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """The threads as a table; the end in the colour of its exit code."""
        self._rest()
        heads, found = outcome_rows(outcome)
        self._table("", heads, found)
        *lines, end = outcome_words(plan, outcome)
        for line in lines:
            self._print(line)
        self._print(end, style="red" if outcome.exit_code else "green")

    def _print(self, text: str, style: str | None = None) -> None:
        """Print foreign words: they are neither markup nor control characters."""
        self._console.print(printable(text), style=style, markup=False)

    def _table(self, title: str, heads: tuple[str, ...], found: list[tuple[str, ...]]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        if title:
            self._console.print(Text(printable(title), style="bold"))
        table = Table(*heads, box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
        for row in found:
            is_wrong = any(cell.startswith("NOT ") for cell in row)
            cells = [Text(printable(cell)) for cell in row]
            table.add_row(*cells, style="red" if is_wrong else None)
        self._console.print(table)

    def _rest(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def screen_of(arguments: argparse.Namespace) -> Screen:
    """What suits the command line and where its output goes."""
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.quiet:
        return Quiet(out)
    is_dumb = os.environ.get("TERM", "dumb") == "dumb"
    return Terminal(out) if out.isatty() and not is_dumb else Screen(out)


def work_of(plan: Plan) -> str:
    """What has to be had of the host before the VM starts, in words."""
    pages = sum(cell.pages for cell in plan.cells if cell.is_huge)
    what = [
        f"CPUs {plan.exclusive}" if plan.exclusive else "",
        counted(pages, "huge page") if pages else "",
        counted(len(plan.spec.pci), "device") if plan.spec.pci else "",
    ]
    said = ", ".join(filter(None, what))
    return f"claiming {said}" if said else "preparing"
