"""The end of a command."""

from __future__ import annotations

from typing import Any

import pytest

from kvmhooks.errors import UsageError
from kvmhooks.exits import exit_code_of


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
