"""Tuned KVM guests: libvirt hooks, domain XML and QEMU argument lists from one plan.

::

    import kvmhooks

    spec = kvmhooks.load_vm("vm.toml")
    host = kvmhooks.read_host("/")
    plan = kvmhooks.plan(spec, host)
    print(kvmhooks.domain_xml(plan))

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
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.libvirt.xml import domain_xml
    from kvmhooks.placement import Plan, claim, plan
    from kvmhooks.qemu.argv import qemu_argv
    from kvmhooks.spec import VmSpec, load_vm, parse_vm
    from kvmhooks.values import ByteSize, CpuSet, PciAddress
    from kvmhooks.version import VERSION as __version__  # noqa: N811 -- the name that people ask for

_HOMES = {
    "ByteSize": ("kvmhooks.values", "ByteSize"),
    "Claim": ("kvmhooks.isolate.claims.claim", "Claim"),
    "CpuSet": ("kvmhooks.values", "CpuSet"),
    "Host": ("kvmhooks.host", "Host"),
    "HostError": ("kvmhooks.errors", "HostError"),
    "InputError": ("kvmhooks.errors", "InputError"),
    "KvmhooksError": ("kvmhooks.errors", "KvmhooksError"),
    "PciAddress": ("kvmhooks.values", "PciAddress"),
    "Plan": ("kvmhooks.placement", "Plan"),
    "PlanError": ("kvmhooks.errors", "PlanError"),
    "Problem": ("kvmhooks.errors", "Problem"),
    "SpecError": ("kvmhooks.errors", "SpecError"),
    "ValueFormatError": ("kvmhooks.errors", "ValueFormatError"),
    "VmSpec": ("kvmhooks.spec", "VmSpec"),
    "__version__": ("kvmhooks.version", "VERSION"),
    "claim": ("kvmhooks.placement", "claim"),
    "domain_xml": ("kvmhooks.libvirt.xml", "domain_xml"),
    "load_vm": ("kvmhooks.spec", "load_vm"),
    "parse_vm": ("kvmhooks.spec", "parse_vm"),
    "plan": ("kvmhooks.placement", "plan"),
    "qemu_argv": ("kvmhooks.qemu.argv", "qemu_argv"),
    "read_host": ("kvmhooks.host", "read"),
}
"""Public name: the module that has it, and its name there."""

__all__ = [
    "ByteSize",
    "Claim",
    "CpuSet",
    "Host",
    "HostError",
    "InputError",
    "KvmhooksError",
    "PciAddress",
    "Plan",
    "PlanError",
    "Problem",
    "SpecError",
    "ValueFormatError",
    "VmSpec",
    "__version__",
    "claim",
    "domain_xml",
    "load_vm",
    "parse_vm",
    "plan",
    "qemu_argv",
    "read_host",
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
