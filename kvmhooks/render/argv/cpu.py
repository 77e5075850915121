"""The CPU model and topology."""

from __future__ import annotations

from kvmhooks.placement.model import Plan

LEVELS = ("sockets", "dies", "cores", "threads")


def arguments(plan: Plan) -> list[str]:
    """``-cpu`` with its features and ``-smp`` with every level that x86 has.

    ``clusters`` are not written: x86 machines refuse them (hw/i386/pc.c).
    """
    model = [plan.cpu.model]
    if plan.cpu.vendor is not None:
        model.append(f"vendor={plan.cpu.vendor}")
    switch = {"+": "on", "-": "off"}
    model += [f"{feature[1:]}={switch[feature[0]]}" for feature in plan.cpu.features]
    topology = [
        str(len(plan.vcpus)),
        *(f"{level}={getattr(plan.topology, level)}" for level in LEVELS),
    ]
    return ["-cpu", ",".join(model), "-smp", ",".join(topology)]
