"""A plan for a person to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from kvmhooks.placement.claim import asked_of
from kvmhooks.placement.model import Cell, Plan
from kvmhooks.show.table import table
from kvmhooks.values import ByteSize
from kvmhooks.wording import counted

HEADS: Final = ("thread", "cell", "planned CPUs")


def picture(plan: Plan) -> str:
    """Return the plan as a table of threads and cells, and its reasons, with a final newline."""
    lines = [headline(plan), *table(HEADS, rows(plan)), *sentences(plan)]
    return "\n".join(lines) + "\n"


def sentences(plan: Plan) -> list[str]:
    """Return the cells, what is the VM's alone, the reasons and the warnings, a line each."""
    lines = [_cell(plan, cell) for cell in plan.cells]
    if plan.exclusive:
        lines.append(f"exclusive: CPUs {plan.exclusive}; the host keeps {plan.housekeeping}")
    lines += [*_settings(plan)]
    lines += [f"why: {reason}" for reason in plan.why]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return lines


def _settings(plan: Plan) -> Iterator[str]:
    """Yield what it asks of the host, a line for each file that says so."""
    files: dict[str, list[str]] = {}
    for name, (value, file) in asked_of(plan).items():
        files.setdefault(file, []).append(f"{name} {value}")
    for file, settings in files.items():
        yield f"asks by {file}: {', '.join(settings)}"


def headline(plan: Plan) -> str:
    """Return the VM in one line."""
    levels = attrs.asdict(plan.topology).items()
    shape = " x ".join(
        counted(count, level.removesuffix("s"))
        for level, count in levels
        if count != 1 or level in {"cores", "threads"}
    )
    memory = ByteSize.kib(sum(cell.memory_kib for cell in plan.cells))
    machine = f"{plan.accel}, CPU {plan.cpu.model}"
    return f"{plan.name}: {counted(len(plan.vcpus), 'vCPU')} ({shape}), {memory}, {machine}"


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return each thread below ``HEADS``."""
    cells = {vcpu: str(cell.id) for cell in plan.cells for vcpu in cell.vcpus}
    return [
        *((f"vCPU {pin.vcpu}", cells[pin.vcpu], str(pin.cpus)) for pin in plan.vcpus),
        *((f"iothread {pin.id}", "", str(pin.cpus)) for pin in plan.iothreads),
        ("emulator", "", str(plan.emulator)),
    ]


def _cell(plan: Plan, cell: Cell) -> str:
    node = "any node" if cell.node is None else f"node {cell.node} ({plan.memory_mode})"
    memory, page = ByteSize.kib(cell.memory_kib), ByteSize.kib(cell.page_kib)
    return f"cell {cell.id}: vCPUs {cell.vcpus}, {memory} in pages of {page} from {node}"
