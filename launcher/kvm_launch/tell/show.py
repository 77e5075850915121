"""The words of kvm-launch to a person: the plan before, the threads and the verdict after."""

from __future__ import annotations

from typing import Final

from kvm_launch.tell.outcome import Isolated, Outcome, not_restored
from kvmhooks.placement.model import Plan
from kvmhooks.show.table import table
from kvmhooks.wording import counted

REFUSED_SHOWN: Final = 3


def outcome_lines(plan: Plan, outcome: Outcome) -> list[str]:
    """Return the table of threads, what the guest saw, and how it ended."""
    return [*table(*outcome_rows(outcome)), *outcome_words(plan, outcome)]


def outcome_rows(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads of the table of threads, and a row for each."""
    return ("thread", "planned CPUs", "thread id", "affinity", ""), [
        (
            thread.role,
            str(thread.planned),
            str(thread.thread),
            str(thread.affinity),
            "as planned" if thread.is_as_planned else "NOT as planned",
        )
        for thread in outcome.ended.threads
    ]


def outcome_words(plan: Plan, outcome: Outcome) -> list[str]:
    """Return what the guest saw, what its host had of it, and at last how it ended."""
    lines = []
    if outcome.trouble is not None:
        lines.append(f"guest: {outcome.trouble}")
    elif outcome.differences:
        lines += [f"guest: {difference}" for difference in outcome.differences]
    elif outcome.seen is not None:
        lines.append(f"guest: it sees what was planned: {_machine(plan)}")
    lines += [f"QEMU: {word}" for word in outcome.ended.words]
    if outcome.isolated is not None:
        lines += _host_lines(outcome.isolated)
    return [*lines, f"end: {outcome.ended.ending}"]


def _host_lines(isolated: Isolated) -> list[str]:
    """Return what was the VM's alone, what could not be, and whether the host has it back."""
    lines = []
    if isolated.exclusive:
        lines.append(f"host: CPUs {isolated.exclusive} were this VM's alone")
    if isolated.devices:
        lines.append(f"host: it had the devices {', '.join(isolated.devices)}")
    if isolated.refused:
        shown = ", ".join(isolated.refused[:REFUSED_SHOWN])
        more = len(isolated.refused) - REFUSED_SHOWN
        message = f"{shown} and {more} more" if more > 0 else shown
        lines.append(f"host: the kernel did not let us change {message}")
    if not isolated.left:
        return [*lines, "host: restored"]
    return [*lines, *not_restored(isolated.left)]


def _machine(plan: Plan) -> str:
    shape = plan.topology
    counts = (
        (shape.sockets, "socket"),
        (shape.sockets * shape.dies * shape.cores, "core"),
        (len(plan.vcpus), "thread"),
        (len(plan.cells), "NUMA node"),
        (len(plan.spec.disk), "disk"),
    )
    return ", ".join(counted(count, noun) for count, noun in counts)
