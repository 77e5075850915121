"""From a spec to a plan for this host, or for the captured one that ``--host`` names."""

from __future__ import annotations

import sys

import attrs

from kvm_launch.options import LaunchOptions
from kvmhooks.errors import LaunchError
from kvmhooks.host import Host, read
from kvmhooks.kvm import accel
from kvmhooks.machine.target import OLDEST, Target
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import parts_of, plan
from kvmhooks.qemu import emulator
from kvmhooks.qemu.run_dir import base_of
from kvmhooks.spec.model import VmSpec


def plan_to_print(spec: VmSpec, options: LaunchOptions) -> Plan:
    """Return the plan for ``--print``, which starts nothing: no probe of KVM either.

    A verdict of an earlier probe is used; without one ``auto`` is KVM if it is there, and a
    message says so.
    """
    host = read_host(options, spec)
    if spec.machine.accel == "auto" and options.captured_host is None:
        spec = _settled_from_memory(spec, host, options)
    return plan(spec, host, target=target_of(spec, options))


def read_host(options: LaunchOptions, *specs: VmSpec) -> Host:
    """Return the host to plan for, as far as ``specs`` need it; tell stderr its flaws."""
    parts = dict.fromkeys(part for spec in specs for part in parts_of(spec))
    tree = options.captured_host
    host = read("/" if tree is None else tree, parts=tuple(parts))
    if tree is not None:
        for warning in host.warnings:
            print(f"{tree}: {warning}", file=sys.stderr)
    return host


def _settled_from_memory(spec: VmSpec, host: Host, options: LaunchOptions) -> VmSpec:
    try:
        choice = accel.from_memory(spec, host, emulator.find(spec), base_of(options.run_dir))
    except LaunchError:
        choice = None  # no QEMU here, or no directory: the arguments can be printed all the same
    if choice is None:
        print("accelerator: auto, and KVM was not tried yet on this boot", file=sys.stderr)
        return spec
    return choice.spec


def target_of(spec: VmSpec, options: LaunchOptions) -> Target:
    """Return the target: the QEMU of this machine, and libvirt only if it is asked for.

    Printed XML is for libvirt. For a captured host nothing is known of its programs.
    """
    has_libvirt = options.libvirt_uri is not None or options.printed == "xml"
    if options.captured_host is not None:
        return OLDEST if has_libvirt else attrs.evolve(OLDEST, libvirt=None)
    from kvmhooks.survey.programs_here import target_for

    target = target_for(spec, has_libvirt=has_libvirt)
    if options.libvirt_uri is None:
        return target
    from kvmhooks.libvirt.capabilities import ask
    from kvmhooks.libvirt.connection import connected

    with connected(options.libvirt_uri) as connection:
        return attrs.evolve(target, domain=ask(connection, spec))
