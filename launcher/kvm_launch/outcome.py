"""How a VM's run went, and what that means for the exit code."""

from __future__ import annotations

import json
from typing import Any

import attrs
from attrs import frozen

from kvm_launch.life import Step
from kvmhooks.errors import QemuError, RestoreError
from kvmhooks.live.report import Difference, Unreadable, compare, parse
from kvmhooks.live.threads import ThreadPin
from kvmhooks.placement import Plan
from kvmhooks.values import CpuSet


@frozen
class Ended:
    """A VM that ran and is gone."""

    threads: tuple[ThreadPin, ...]
    """Every thread with a plan, read back before the guest's first instruction."""
    ending: str
    """How it ended: ``the guest powered off`` or another sentence."""
    is_clean: bool
    """Whether the guest powered off by itself or as it was asked to."""
    report: bytes | None
    """What the guest said of itself."""
    words: tuple[str, ...] = ()
    """QEMU's last words: warnings, as it did not fail."""


@frozen
class Isolated:
    """What the VM held of the host while it ran."""

    exclusive: CpuSet
    refused: tuple[str, ...] = ()
    """What the kernel did not let us change: knob and reason."""
    left: tuple[str, ...] = ()
    """What could not be given back."""
    devices: tuple[str, ...] = ()
    """PCI addresses of what was bound to ``vfio-pci`` for it."""


@frozen
class Outcome:
    """The run, judged against the plan."""

    ended: Ended
    differences: tuple[Difference, ...]
    """What the guest does not see as planned."""
    seen: dict[str, Any] | None
    """The guest's report."""
    trouble: str | None
    """Why there is nothing to compare, where there should be."""
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
        """What ``--json`` prints after the run."""
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


def as_text(outcome: Outcome) -> str:
    """The JSON text of ``--json``."""
    return json.dumps(outcome.to_json(), indent=2)
