"""The outcome of a VM's run, and what it means for the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from kvmhooks.errors import QemuError, RestoreError
from kvmhooks.qemu.guest_report import Difference, Unreadable, compare, parse

if TYPE_CHECKING:
    from kvm_launch.tell.states import Step
    from kvmhooks.placement import Plan
    from kvmhooks.qemu.threads import ThreadPin
    from kvmhooks.values import CpuSet


@frozen
class Ended:
    """A VM that ran and is gone."""

    threads: tuple[ThreadPin, ...]
    """Every thread with a plan, read back before the guest's first instruction."""
    ending: str
    """The words for how it ended: ``the guest powered off`` or another sentence."""
    is_clean: bool
    """The guest powered off by itself or as it was asked to."""
    report: bytes | None
    """The guest's report of itself."""
    words: tuple[str, ...] = ()
    """QEMU's last words: warnings, as it did not fail."""


@frozen
class Isolated:
    """The host's resources that the VM held while it ran."""

    exclusive: CpuSet
    refused: tuple[str, ...] = ()
    """The changes that the kernel did not let us make: knob and reason."""
    left: tuple[str, ...] = ()
    """The things that could not be given back."""
    devices: tuple[str, ...] = ()
    """PCI addresses of what was bound to ``vfio-pci`` for it."""


@frozen
class Outcome:
    """The run, judged against the plan."""

    ended: Ended
    differences: tuple[Difference, ...]
    """The parts that the guest does not see as planned."""
    seen: dict[str, Any] | None
    """The guest's report."""
    trouble: str | None
    """The reason why there is nothing to compare, where there should be."""
    isolated: Isolated | None = None
    """None for a VM that held nothing."""
    steps: tuple[Step, ...] = ()
    """The states that it went through."""

    @property
    def exit_code(self) -> int:
        """0 only if the guest powered off, everything was as planned, and the host is restored."""
        if self.isolated is not None and self.isolated.left:
            return RestoreError.exit_code
        pinned = all(thread.is_as_planned for thread in self.ended.threads)
        is_right = self.ended.is_clean and pinned and not self.differences and not self.trouble
        return 0 if is_right else QemuError.exit_code

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints after the run."""
        return {
            "ending": self.ended.ending,
            "states": [
                {"state": str(step.state), "why": step.why, "at": step.at} for step in self.steps
            ],
            "qemu": list(self.ended.words),
            "threads": [
                {
                    "role": thread.role,
                    "thread": thread.thread,
                    "planned": str(thread.planned),
                    "affinity": str(thread.affinity),
                }
                for thread in self.ended.threads
            ],
            "guest": self.seen,
            "differences": [attrs.asdict(difference) for difference in self.differences],
            "trouble": self.trouble,
            "isolation": self._isolation(),
            "exit_code": self.exit_code,
        }

    def _isolation(self) -> dict[str, Any] | None:
        if self.isolated is None:
            return None
        return {
            "exclusive": str(self.isolated.exclusive),
            "devices": list(self.isolated.devices),
            "refused": list(self.isolated.refused),
            "not_restored": list(self.isolated.left),
        }


def judge(
    plan: Plan, ended: Ended, isolated: Isolated | None = None, *, has_booted: bool = True
) -> Outcome:
    """Compare what the guest said with the plan, where the spec says that it reports.

    A guest that has not booted here has reported elsewhere.
    """
    if not plan.spec.guest.report or not has_booted:
        return Outcome(ended, (), None, None, isolated)
    if ended.report is None:
        return Outcome(ended, (), None, "the guest did not report what it sees", isolated)
    try:
        seen = parse(ended.report)
        return Outcome(ended, tuple(compare(plan, seen)), seen, None, isolated)
    except Unreadable as error:
        return Outcome(ended, (), None, str(error), isolated)


def not_restored(left: Sequence[str]) -> list[str]:
    """Return what is left of a claim, and what to do."""
    return [*(f"host: NOT restored: {item}" for item in left), "host: run `kvmhooks reconcile`"]


def as_text(outcome: Outcome) -> str:
    """Return the JSON text of ``--json``."""
    return json.dumps(outcome.to_json(), indent=2)
