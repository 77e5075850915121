"""The end of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvm_launch.commands.main import EXAMPLES
from kvmhooks.errors import KvmhooksError, RestoreError, UsageError
from kvmhooks.exits import CODES, DRIFT, exit_code_of, told_codes


class Interrupts:
    """Ctrl-C comes while a class is made of it."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise KeyboardInterrupt


def while_a_class_is_made() -> int:
    """Raise as while a module is loaded."""
    made: Any = type("Made", (), {"attribute": Interrupts()})
    return len(made.__name__)


def by_itself() -> int:
    """Anywhere else."""
    raise KeyboardInterrupt


def wrongly() -> int:
    """A mistake of ours."""
    raise RuntimeError("a mistake")


def refused() -> int:
    """An error of ours."""
    raise UsageError("found nothing")


@pytest.mark.parametrize("command", [while_a_class_is_made, by_itself])
def test_an_interrupted_command_says_so(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so whatever it was at."""
    assert exit_code_of(command, interrupted="nothing is left") == 1
    assert capsys.readouterr().err == "nothing is left\n"


def test_an_error_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With its own exit code."""
    assert exit_code_of(refused, interrupted="") == UsageError.exit_code
    assert capsys.readouterr().err == "found nothing\n"


def test_a_mistake_is_not_hidden() -> None:
    """Only an interruption is one."""
    with pytest.raises(RuntimeError, match="a mistake"):
        exit_code_of(wrongly, interrupted="")


def errors_of(kind: type[KvmhooksError]) -> list[type[KvmhooksError]]:
    """Return an error and all below it."""
    return [kind, *(error for below in kind.__subclasses__() for error in errors_of(below))]


def test_each_code_is_in_the_table_once() -> None:
    """Those of all errors, with a name and a meaning of its own each: drift is no failure to give
    the host back."""
    codes, names, meanings = zip(*CODES, strict=True)
    assert codes == tuple(range(len(CODES)))
    assert len({*names}) == len({*meanings}) == len(CODES)
    assert {error.exit_code for error in errors_of(KvmhooksError)} <= {*codes}
    assert RestoreError.exit_code != DRIFT


@pytest.mark.parametrize("page", ["kvmhooks.1", "kvm-launch.1"])
def test_the_manual_has_the_table(page: str) -> None:
    """Whole, under EXIT STATUS."""
    text = (Path(__file__).parents[2] / "docs/man" / page).read_text().replace("\\-", "-")
    section = text.partition(".SH EXIT STATUS\n")[2].partition(".SH ")[0]
    assert section == "".join(f".TP\n\\fB{code}\\fR\n{what}\n" for code, _, what in CODES)


def test_the_help_of_kvm_launch_has_the_table() -> None:
    """It is for people who have no manual."""
    assert EXAMPLES.endswith(f"exit codes:\n{told_codes()}")
