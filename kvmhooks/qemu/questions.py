"""Questions to a QEMU over QMP, as a machine without anything that runs nothing.

(https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks import bounded
from kvmhooks.errors import LaunchError
from kvmhooks.machine.target import CpuAnswers

Question = tuple[str, Mapping[str, object]]
"""A command of QMP, and its arguments."""

SECONDS: Final = 20
_ARGUMENTS: Final = ("-S", "-no-user-config", "-nodefaults", "-display", "none", "-qmp", "stdio")

_SET_APART: Final = frozenset({"topoext", "kvm-hint-dedicated", "ht", "pts", "hfi", "itd"})
"""Features that every guest may have and none has by itself (``no_autoenable_flags``,
target/i386/cpu.c): those of the models ``host`` and ``max`` tell nothing of them."""

CPU_QUESTIONS: Final[tuple[Question, ...]] = (
    ("query-cpu-definitions", {}),
    # The model of the static expansions: all of its features are there, and none is on.
    ("query-cpu-model-expansion", {"type": "static", "model": {"name": "base"}}),
    # All that guests can have here; features that cannot migrate are no less there.
    (
        "query-cpu-model-expansion",
        {"type": "full", "model": {"name": "max", "props": {"migratable": False}}},
    ),
)


@frozen
class Answers:
    """The answers, by the number of the question; one that was refused has its words instead."""

    returned: Mapping[int, Any]
    refused: Mapping[int, str]

    def missing(self, count: int) -> list[int]:
        """Return which of so many questions were not answered."""
        return sorted(set(range(count)) - self.returned.keys() - self.refused.keys())


def ask(emulator: Path, questions: Sequence[Question], machine: str = "none") -> list[str]:
    """Ask all questions at once, have QEMU quit after the last answer, and read to the end.

    When it quits, what a slow reader has not taken is lost: a pipe holds 64 KiB of 100 and more.
    Raises ``LaunchError``.
    """
    lines: list[dict[str, object]] = [{"execute": "qmp_capabilities"}]
    lines += [
        {"execute": name, "arguments": arguments, "id": at}
        for at, (name, arguments) in enumerate(questions)
    ]
    try:
        done = bounded.run(
            [emulator, *_ARGUMENTS, "-machine", machine],
            seconds=SECONDS,
            data=bounded.Dialogue(
                first=b"".join(map(_line, lines)),
                sign=f'"id": {len(questions) - 1}'.encode(),
                last=_line({"execute": "quit"}),
            ),
        )
    except OSError as error:
        raise LaunchError(f"{emulator}: {error.strerror}") from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LaunchError(f"{emulator}: {last or f'ended with {done.returncode}'}")
    return done.stdout.decode(errors="replace").split("\n")


def parse(emulator: Path, lines: Sequence[str]) -> Answers:
    """Read what QEMU wrote: a greeting, the answers, and events between. Raises ``LaunchError``."""
    try:
        objects = [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise LaunchError(f"{emulator}: said over QMP what is no JSON: {error}") from error
    numbered = [each for each in objects if "id" in each]
    return Answers(
        returned={each["id"]: each.get("return") for each in numbered if "error" not in each},
        refused={
            each["id"]: str(each["error"].get("desc", each["error"]))
            for each in numbered
            if "error" in each
        },
    )


def cpu_answers(answers: Answers, first: int) -> CpuAnswers:
    """Return the answers to ``CPU_QUESTIONS``, of which ``first`` is the first one's number."""
    models = answers.returned.get(first) or ()
    known = _properties(answers, first + 1)
    offered = _properties(answers, first + 2)
    features = {name for name, value in known.items() if isinstance(value, bool)}
    absent = {name for name in features if offered.get(name) is False}
    return CpuAnswers(
        lacking={
            str(model["name"]): tuple(dict.fromkeys(map(str, model["unavailable-features"])))
            for model in models
            if model.get("unavailable-features")
        },
        absent=frozenset(absent - _SET_APART),
    )


def _properties(answers: Answers, number: int) -> Mapping[str, Any]:
    """Return the properties of an expanded model; none where QEMU expands none."""
    model = (answers.returned.get(number) or {}).get("model", {})
    properties: Mapping[str, Any] = model.get("props", {})
    return properties


def _line(question: Mapping[str, object]) -> bytes:
    return f"{json.dumps(question)}\n".encode()
