"""The judgement of a run, its words, and its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kvm_launch.life.run import _told
from kvm_launch.options import LaunchOptions
from kvm_launch.talk.tty import outliving
from kvm_launch.tell.outcome import Ended, Isolated, Outcome, as_text, judge
from kvm_launch.tell.show import outcome_lines
from kvm_launch.tell.states import Step, VmState
from kvmhooks.qemu.guest_report import MARK, Difference
from kvmhooks.qemu.threads import ThreadPin
from kvmhooks.values import CpuSet
from tests.golden.cases import golden_plan

PINNED = ThreadPin("vCPU 0", 41, CpuSet((1,)), CpuSet((1,)))
ASTRAY = ThreadPin("emulator", 40, CpuSet((0,)), CpuSet((0, 1)))
DIFFERENCE = Difference("vCPUs", "4", "3")


def ended(*threads: ThreadPin, is_clean: bool = True, report: bytes | None = None) -> Ended:
    """A VM that is gone."""
    return Ended(threads, "the guest powered off", is_clean, report)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(ended(PINNED), (), {}, None), 0),
        (Outcome(ended(), (), None, None), 0),
        (Outcome(ended(PINNED, ASTRAY), (), {}, None), 3),
        (Outcome(ended(PINNED, is_clean=False), (), {}, None), 3),
        (Outcome(ended(PINNED), (DIFFERENCE,), {}, None), 3),
        (Outcome(ended(PINNED), (), None, "the guest did not report"), 3),
        (Outcome(ended(PINNED), (), None, None, Isolated(CpuSet((1,)), refused=("irq/0",))), 0),
        (Outcome(ended(ASTRAY), (), None, None, Isolated(CpuSet((1,)), left=("irq/1",))), 4),
    ],
)
def test_only_what_is_all_right_is_0(outcome: Outcome, code: int) -> None:
    """A thread astray, an end that was forced, a difference or no report: 3. A host left: 4."""
    assert outcome.exit_code == code


@pytest.mark.parametrize(
    ("vm", "report", "trouble"),
    [
        ("tiny", None, None),
        ("tiny", b"anything", None),
        ("report", None, "the guest did not report what it sees"),
        ("report", MARK + b"}", "found a guest report that is no JSON"),
        ("report", MARK + b'"cpus":[]}', "found a guest report without 'nodes'"),
    ],
)
def test_a_report_is_looked_at_where_one_is_due(
    vm: str, report: bytes | None, trouble: str | None
) -> None:
    """A guest that shall report and does not, or not readably, is trouble; another's is ignored."""
    outcome = judge(golden_plan(vm, "laptop"), ended(report=report))
    assert outcome.differences == ()
    assert (outcome.trouble or "").startswith(trouble or "")
    assert (outcome.trouble is None, outcome.exit_code) == (trouble is None, 3 if trouble else 0)


def test_the_outcome_as_json() -> None:
    """Everything that is known of the run, with sets as lists."""
    isolated = Isolated(CpuSet((2, 3)), refused=("irq/0 (EIO)",))
    outcome = Outcome(ended(PINNED), (DIFFERENCE,), {"kvmhooks-guest": 1}, None, isolated,
                      (Step(VmState.ENDED, "the guest powered off", 2.5),))  # fmt: skip
    assert json.loads(as_text(outcome)) == {
        "ending": "the guest powered off",
        "states": [{"state": "ended", "why": "the guest powered off", "at": 2.5}],
        "qemu": [],
        "threads": [{"role": "vCPU 0", "thread": 41, "planned": "1", "affinity": "1"}],
        "guest": {"kvmhooks-guest": 1},
        "differences": [{"what": "vCPUs", "planned": "4", "seen": "3"}],
        "trouble": None,
        "isolation": {
            "exclusive": "2-3",
            "devices": [],
            "refused": ["irq/0 (EIO)"],
            "not_restored": [],
        },
        "exit_code": 3,
    }


@pytest.mark.parametrize(
    ("isolated", "sentences"),
    [
        (Isolated(CpuSet((2, 3))), ["host: restored"]),
        (
            Isolated(CpuSet((2, 3)), refused=("a", "b", "c", "d", "e")),
            ["host: the kernel did not let us change a, b, c and 2 more", "host: restored"],
        ),
        (
            Isolated(CpuSet((2, 3)), left=("irq/1: EIO",)),
            ["host: NOT restored: irq/1: EIO", "host: run `kvmhooks reconcile`"],
        ),
    ],
)
def test_what_became_of_the_host(isolated: Isolated, sentences: list[str]) -> None:
    """It is told which CPUs were the VM's alone, what could not be, and whether the host has them
    back.
    """
    lines = outcome_lines(golden_plan("tiny", "laptop"), Outcome(ended(), (), None, None, isolated))
    assert lines[1:-1] == ["host: CPUs 2-3 were this VM's alone", *sentences]


@pytest.mark.parametrize(
    ("outcome", "last"),
    [
        (Outcome(ended(PINNED, ASTRAY), (), None, None), []),
        (Outcome(ended(PINNED, ASTRAY), (), None, "no word"), ["guest: no word"]),
        (
            Outcome(ended(PINNED, ASTRAY), (DIFFERENCE,), {}, None),
            ["guest: vCPUs: planned 4, the guest sees 3"],
        ),
        (
            Outcome(ended(PINNED, ASTRAY), (), {}, None),
            [
                (
                    "guest: it sees what was planned: 2 sockets, 2 cores, 4 threads, 2 NUMA nodes, "
                    "1 disk"
                )
            ],
        ),
    ],
)
def test_the_table_after_a_run(outcome: Outcome, last: list[str]) -> None:
    """A line for each thread, what the guest saw, and the end."""
    assert outcome_lines(golden_plan("report", "server"), outcome) == [
        "thread    planned CPUs  thread id  affinity",
        "vCPU 0    1             41         1         as planned",
        "emulator  0             40         0-1       NOT as planned",
        *last,
        "end: the guest powered off",
    ]


@pytest.mark.parametrize(
    ("where", "is_json", "code"),
    [("/dev/full", True, 3), ("/dev/null", True, 0), ("/dev/full", False, 0)],
)
def test_a_document_that_is_lost_is_no_0(
    where: str,
    is_json: bool,  # noqa: FBT001 -- a parameter
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A VM outlives its output; whoever asked for the document is told that there is none."""
    options = LaunchOptions(is_json=is_json)
    with Path(where).open("w", encoding="utf-8") as out, Path("/dev/null").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with outliving():
            outcome = Outcome(ended(PINNED), (), None, None)
            assert _told(options, golden_plan("tiny", "laptop"), outcome) == code
