"""What kvm-launch shows a person: the plan before, the threads and the verdict after."""

from __future__ import annotations

from kvm_launch.outcome import Outcome
from kvmhooks.placement import Plan
from kvmhooks.render.table import table
from kvmhooks.wording import counted


def outcome_lines(plan: Plan, outcome: Outcome) -> list[str]:
    """The table of threads, what the guest saw, and how it ended."""
    rows = [
        (
            thread.role,
            str(thread.planned),
            str(thread.thread),
            str(thread.affinity),
            "as planned" if thread.is_as_planned else "NOT as planned",
        )
        for thread in outcome.ended.threads
    ]
    lines = table(("thread", "planned CPUs", "thread id", "affinity", ""), rows)
    if outcome.trouble is not None:
        lines.append(f"guest: {outcome.trouble}")
    elif outcome.differences:
        lines += [f"guest: {difference}" for difference in outcome.differences]
    elif outcome.seen is not None:
        lines.append(f"guest: it sees what was planned: {_machine(plan)}")
    lines += [f"QEMU: {word}" for word in outcome.ended.words]
    return [*lines, f"end: {outcome.ended.ending}"]


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
