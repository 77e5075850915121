"""From a spec to a plan for this host, or for the captured one that ``--host`` names."""

from __future__ import annotations

import sys

from kvm_launch.options import LaunchOptions
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.system.system import System
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import plan
from kvmhooks.spec.model import VmSpec
from kvmhooks.survey.sources import LIVE, Sources
from kvmhooks.survey.survey import take

_SLOW = {"tcg": " (QEMU emulates the CPU: slow, but it runs)", "kvm": ""}


def plan_to_print(spec: VmSpec, options: LaunchOptions) -> Plan:
    """Return the plan for ``--print``, which starts nothing: no probe of KVM either."""
    inventory = take(sources_of(options), spec)
    tell(inventory)
    return plan(spec, inventory)


def sources_of(options: LaunchOptions, system: System | None = None) -> Sources:
    """Return what a plan is made on: libvirt has a part in it only if it is asked for.

    Printed XML is for libvirt. ``system`` is the host whose claims count, if it is another one. On
    a captured host run none of our VMs.
    """
    has_libvirt = options.libvirt_uri is not None or options.printed == "xml"
    if options.captured_host is not None:
        return Sources(host=str(options.captured_host), has_libvirt=has_libvirt)
    return Sources(
        host=LIVE,
        has_libvirt=has_libvirt,
        uri=options.libvirt_uri,
        run_dir=options.run_dir,
        system=system,
    )


def tell(inventory: Inventory) -> None:
    """Tell stderr the flaws and gaps of an inventory."""
    for warning in inventory.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def accelerator_line(spec: VmSpec, inventory: Inventory) -> str:
    """Return the accelerator of a VM and why, in one line. Raises ``PlanError`` without KVM."""
    hypervisor = inventory.hypervisor_of(spec.name)
    accel, why = hypervisor.accelerator(spec.machine.accel, inventory.host)
    if not why:
        return f"accelerator: {accel}, as asked for"
    return f"accelerator: {accel}{_SLOW[accel]}: {hypervisor.words_on(inventory.host)}"
