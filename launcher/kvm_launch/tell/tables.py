"""The tables and colours of what kvm-launch tells a person at a terminal.

The guest's console goes to the same place by itself. rich is loaded for a terminal only.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, TextIO

from kvm_launch.tell.outcome import Outcome
from kvm_launch.tell.screen import Screen
from kvm_launch.tell.show import outcome_rows, outcome_words
from kvm_launch.tell.states import Step, VmState
from kvmhooks.output import Plain
from kvmhooks.placement.model import Plan
from kvmhooks.show.plan_text import HEADS, headline, rows, sentences
from kvmhooks.wording import printable

if TYPE_CHECKING:
    from rich.status import Status

COLOURS: Final = {
    VmState.RUNNING: "green",
    VmState.ENDED: "bold",
    VmState.SHUTTING_DOWN: "yellow",
}


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
        """The encoding of its text."""
        return self._out.encoding


class Terminal(Screen):
    """Tables, colours, and what is being done; NO_COLOR and a dumb terminal are respected."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        from rich.console import Console

        styled: Any = Styled(out) if isinstance(out, Plain) else out
        self._console: Final = Console(file=styled, highlight=False, soft_wrap=True, emoji=False)
        self._status: Status | None = None

    def working(self, on: str) -> None:
        """Show a spinner with a few words, until the guest's console needs the terminal."""
        from rich.text import Text

        self._rest()
        self._status = self._console.status(Text(printable(f"{on} …")))
        self._status.start()

    def line(self, text: str) -> None:
        """Show a line; warnings stand out."""
        self._rest()
        is_warning = text.startswith("warning: ")
        self._print(text, style="yellow" if is_warning else None)

    def plan(self, plan: Plan) -> None:
        """Show a table of threads, and the reasons below it."""
        self._rest()
        self._table(headline(plan), HEADS, rows(plan))
        for sentence in sentences(plan):
            is_warning = sentence.startswith("warning: ")
            self._print(sentence, style="yellow" if is_warning else "dim")

    def step(self, step: Step) -> None:
        """Show the state in its colour; what comes next is said until it is reached."""
        self._rest()
        style = COLOURS.get(step.state, "cyan")
        self._console.print(f"[{style}]{step.state}[/]", end="")
        self._print(f": {step.why}" if step.why else "")
        if step.state is VmState.STARTING:
            self.working("booting")

    def outcome(self, plan: Plan, outcome: Outcome) -> None:
        """Show the threads as a table; the end in the colour of its exit code."""
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
