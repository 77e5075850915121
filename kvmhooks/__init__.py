"""Tuned KVM guests: libvirt hooks, domain XML and QEMU argument lists from one plan.

::

    import kvmhooks

    spec = kvmhooks.load_vm("vm.toml")
    inventory = kvmhooks.take_inventory(kvmhooks.Sources(), spec)
    plan = kvmhooks.plan(spec, inventory)
    print(kvmhooks.domain_xml(plan))

A ``Host`` in the inventory's place is one that nobody else uses.

The names are loaded when they are first used (PEP 562), so that the libvirt hook, which is part of
this package, pays for none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmhooks.errors import (
        HostError,
        InputError,
        KvmhooksError,
        PlanError,
        Problem,
        SpecError,
        ValueFormatError,
    )
    from kvmhooks.host import Host
    from kvmhooks.host import read as read_host
    from kvmhooks.host.drawing import draw as draw_host
    from kvmhooks.inventory.inventory import Inventory
    from kvmhooks.inventory.usage import Holding
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.registry.dry_run import rehearse as simulate
    from kvmhooks.libvirt.importing.importing import read_domain as import_domain
    from kvmhooks.libvirt.tuning.tune import tune
    from kvmhooks.libvirt.xml import domain_xml
    from kvmhooks.machine.target import Target
    from kvmhooks.placement import Plan, claim, plan, plan_all
    from kvmhooks.qemu.argv import qemu_argv
    from kvmhooks.show.plan_map import placed_drawing as draw_plans
    from kvmhooks.spec import VmSpec, load_vm, parse_vm
    from kvmhooks.survey.sources import Sources
    from kvmhooks.survey.survey import take as take_inventory
    from kvmhooks.values import ByteSize, CpuSet, PciAddress
    from kvmhooks.version import VERSION as __version__  # noqa: N811 -- the name that people ask for

_HOMES = {
    "ByteSize": ("kvmhooks.values", "ByteSize"),
    "Claim": ("kvmhooks.isolate.claims.claim", "Claim"),
    "CpuSet": ("kvmhooks.values", "CpuSet"),
    "Holding": ("kvmhooks.inventory.usage", "Holding"),
    "Host": ("kvmhooks.host", "Host"),
    "HostError": ("kvmhooks.errors", "HostError"),
    "InputError": ("kvmhooks.errors", "InputError"),
    "Inventory": ("kvmhooks.inventory.inventory", "Inventory"),
    "KvmhooksError": ("kvmhooks.errors", "KvmhooksError"),
    "PciAddress": ("kvmhooks.values", "PciAddress"),
    "Plan": ("kvmhooks.placement", "Plan"),
    "PlanError": ("kvmhooks.errors", "PlanError"),
    "Problem": ("kvmhooks.errors", "Problem"),
    "Sources": ("kvmhooks.survey.sources", "Sources"),
    "SpecError": ("kvmhooks.errors", "SpecError"),
    "Target": ("kvmhooks.machine.target", "Target"),
    "ValueFormatError": ("kvmhooks.errors", "ValueFormatError"),
    "VmSpec": ("kvmhooks.spec", "VmSpec"),
    "__version__": ("kvmhooks.version", "VERSION"),
    "claim": ("kvmhooks.placement", "claim"),
    "domain_xml": ("kvmhooks.libvirt.xml", "domain_xml"),
    "draw_host": ("kvmhooks.host.drawing", "draw"),
    "draw_plans": ("kvmhooks.show.plan_map", "placed_drawing"),
    "import_domain": ("kvmhooks.libvirt.importing.importing", "read_domain"),
    "load_vm": ("kvmhooks.spec", "load_vm"),
    "parse_vm": ("kvmhooks.spec", "parse_vm"),
    "plan": ("kvmhooks.placement", "plan"),
    "plan_all": ("kvmhooks.placement", "plan_all"),
    "qemu_argv": ("kvmhooks.qemu.argv", "qemu_argv"),
    "read_host": ("kvmhooks.host", "read"),
    "simulate": ("kvmhooks.isolate.registry.dry_run", "rehearse"),
    "take_inventory": ("kvmhooks.survey.survey", "take"),
    "tune": ("kvmhooks.libvirt.tuning.tune", "tune"),
}
"""Public name: the module that has it, and its name there."""

__all__ = [
    "ByteSize",
    "Claim",
    "CpuSet",
    "Holding",
    "Host",
    "HostError",
    "InputError",
    "Inventory",
    "KvmhooksError",
    "PciAddress",
    "Plan",
    "PlanError",
    "Problem",
    "Sources",
    "SpecError",
    "Target",
    "ValueFormatError",
    "VmSpec",
    "__version__",
    "claim",
    "domain_xml",
    "draw_host",
    "draw_plans",
    "import_domain",
    "load_vm",
    "parse_vm",
    "plan",
    "plan_all",
    "qemu_argv",
    "read_host",
    "simulate",
    "take_inventory",
    "tune",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
