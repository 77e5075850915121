"""``<cputune>``: the pins."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element


def elements(plan: Plan) -> list[Element]:
    """A pin for each vCPU, one for the emulator, one for each iothread."""
    pins = [
        *(element("vcpupin", {"vcpu": pin.vcpu, "cpuset": str(pin.cpus)}) for pin in plan.vcpus),
        element("emulatorpin", {"cpuset": str(plan.emulator)}),
        *(
            element("iothreadpin", {"iothread": pin.id, "cpuset": str(pin.cpus)})
            for pin in plan.iothreads
        ),
    ]
    return [element("cputune", children=pins)]
