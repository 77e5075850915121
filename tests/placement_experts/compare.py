"""Compare today's plans with the table, for a person to read.

Run ``python -m tests.placement_experts.compare [HOST …]`` at the root of the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import evolve

from kvmhooks.host import Host, read
from kvmhooks.machine.target import Target
from kvmhooks.placement import Together, plan_all
from tests.placement_experts.machines import is_missing, write_machine
from tests.placement_experts.predicates import Placed, always, failures
from tests.placement_experts.table import FILES, Entry, read_table

TARGET = Target(qemu=(10, 1), libvirt=(11, 10), io_uring=True, vhost_net=True)
"""New programs, so that nothing is left out for their age."""


def differences(entry: Entry, together: Together, host: Host) -> list[str]:
    """Return, a line each, what is not as the entry and every expert have it."""
    found = [
        f"always: {plan.name}: {wrong}"
        for plan in together.plans
        for wrong in always(Placed(plan, host))
    ]
    found += (f"must: {wrong}" for wrong in failures(entry.must, together, host))
    fitting = evolve(together, refused={})
    found += (f"should: {wrong}" for wrong in failures(entry.should, fitting, host))
    return list(dict.fromkeys(found))


def main(names: list[str]) -> None:
    """Print the differences of these hosts, of all without a name."""
    for path in FILES:
        described, _, entries = read_table(path)
        if names and path.stem not in names:
            continue
        if is_missing(described):
            print(f"{path.stem}: {described['tree']} is not here")
            continue
        with TemporaryDirectory() as folder:
            host = read(write_machine(described, Path(folder)))
        for entry in entries:
            together = plan_all(entry.specs, host, target=lambda _: TARGET)
            found = differences(entry, together, host)
            print(f"{path.stem} {entry.kind}: {'as the table has it' if not found else ''}")
            for line in found:
                print(f"    {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
