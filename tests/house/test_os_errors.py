"""No message has the words of Python for an error of the system: «[Errno 2] No such file …»."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path for room in ("kvmhooks", "launcher/kvm_launch") for path in (ROOT / room).rglob("*.py")
)
WORDS = "words_of"
"""The function of ``kvmhooks.errors`` that says it for a person."""


def catches(kind: ast.expr | None) -> bool:
    """Return whether a handler of this kind may be given an error of the system."""
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(map(catches, kind.elts))
    known: object = getattr(builtins, kind.id, None) if isinstance(kind, ast.Name) else None
    return isinstance(known, type) and (issubclass(known, OSError) or issubclass(OSError, known))


def raw(handler: ast.ExceptHandler) -> Iterator[int]:
    """Yield the lines where the error itself is made a text."""
    for node in ast.walk(handler):
        if isinstance(node, ast.FormattedValue):
            value = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            value = node.args[0] if node.func.id in {"str", "repr", "print"} and node.args else node
        else:
            continue
        if isinstance(value, ast.Name) and value.id == handler.name:
            yield node.lineno


def found(text: str) -> list[int]:
    """Return the lines of a module where an error of the system may be told raw."""
    handlers = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler)]
    named = [handler for handler in handlers if handler.name and catches(handler.type)]
    return sorted({line for handler in named for line in raw(handler)})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_error_of_the_system_is_told_in_its_own_words(path: Path) -> None:
    """A module that catches one and tells it says the file and what is wrong with it."""
    assert found(path.read_text()) == []


@pytest.mark.parametrize(
    ("body", "is_raw"),
    [
        ('raise X(f"a: {error}")', True),
        ("log(str(error))", True),
        ("print(error)", True),
        ('raise X(f"a: {error!r}")', True),
        ('raise X(f"a: {error.strerror}")', False),
        ('raise X(f"a: {words_of(error)}")', False),
        ("raise", False),
    ],
)
@pytest.mark.parametrize("kind", ["OSError", "(X, FileNotFoundError)", "Exception", "X"])
def test_the_rule_finds_them(kind: str, body: str, *, is_raw: bool) -> None:
    """A handler of other errors may say theirs."""
    text = f"try:\n    work()\nexcept {kind} as error:\n    {body}\n"
    assert bool(found(text)) == (is_raw and kind != "X")
