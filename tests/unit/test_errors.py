"""The tree of exceptions."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from kvmhooks import errors
from kvmhooks.errors import KvmhooksError, PlanError, Problem, SpecError, ValueFormatError

CLASSES = {
    name: made
    for name, made in vars(errors).items()
    if inspect.isclass(made) and issubclass(made, KvmhooksError)
}


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """The drawing names every class, and gives each the exit code that it has."""
    line = re.compile(r"^    [│├└─ ]*(\w+Error)\b.*?(?:exit (\d))?$", re.MULTILINE)
    drawn = line.findall(errors.__doc__ or "")
    assert [name for name, _ in drawn] == list(dict.fromkeys(name for name, _ in drawn))
    assert {name for name, _ in drawn} == set(CLASSES)
    assert {name: int(code) for name, code in drawn if code} == {
        name: CLASSES[name].exit_code for name, code in drawn if code
    }


@pytest.mark.parametrize("name", CLASSES)
def test_an_exit_code_is_inherited(name: str) -> None:
    """A class without a code in the drawing has that of the class above."""
    assert CLASSES[name].exit_code in {1, 2, 3, 4}
    assert issubclass(CLASSES[name], KvmhooksError)


def test_a_problem_says_where_what_and_what_instead() -> None:
    """One line: the place, what was found, what was expected; the whole file has no place."""
    assert str(Problem("cpu.vcpus", "'4'", "a number")) == "cpu.vcpus: found '4', expected a number"
    assert str(Problem("", "nothing", "TOML")) == "found nothing, expected TOML"


def test_a_spec_error_tells_all_problems() -> None:
    """Each problem is a line of its own that begins with the file."""
    problems = (Problem("name", "1", "a text"), Problem("", "nothing", "more"))
    error = SpecError("web.toml", problems)
    assert str(error).splitlines() == [
        "web.toml: name: found 1, expected a text",
        "web.toml: found nothing, expected more",
    ]
    assert (error.source, error.problems, error.exit_code) == ("web.toml", problems, 1)


def test_errors_keep_their_parts() -> None:
    """The parts of an error can be asked for."""
    value = ValueFormatError(12, "a text")
    assert (value.found, value.expected, isinstance(value, ValueError)) == (12, "a text", True)
    assert PlanError("cpu.vcpus", "9", "at most 8").problem == Problem(
        "cpu.vcpus", "9", "at most 8"
    )


@pytest.mark.parametrize("name", ["UsageError", "HostError", "QemuError", "RestoreError"])
def test_a_plain_error_is_its_text(name: str) -> None:
    """The text of an error is a whole message, and survives a pickle."""
    error = CLASSES[name]("nothing works")
    assert str(pickle.loads(pickle.dumps(error))) == "nothing works"  # noqa: S301 -- our own
