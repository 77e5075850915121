"""From a spec to a plan for this host, or for the captured one that ``--host`` names."""

from __future__ import annotations

import argparse
import sys

import attrs

from kvmhooks.errors import LaunchError
from kvmhooks.host import Host, read
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import base_of
from kvmhooks.placement import Plan, Target, parts_of, plan
from kvmhooks.placement.target import OLDEST
from kvmhooks.spec import VmSpec


def plan_to_print(spec: VmSpec, arguments: argparse.Namespace) -> Plan:
    """The plan for ``--print``, which starts nothing: no probe of KVM either.

    A verdict of an earlier probe is used; without one ``auto`` is KVM if it is there, and a
    message says so.
    """
    host = read_host(arguments, spec)
    if spec.machine.accel == "auto" and arguments.host is None:
        spec = _settled_from_memory(spec, host, arguments)
    return plan(spec, host, target=target_of(spec, arguments))


def read_host(arguments: argparse.Namespace, *specs: VmSpec) -> Host:
    """The host to plan for, as far as ``specs`` need it; what is wrong with it goes to stderr."""
    parts = dict.fromkeys(part for spec in specs for part in parts_of(spec))
    host = read("/" if arguments.host is None else arguments.host, parts=tuple(parts))
    if arguments.host is not None:
        for warning in host.warnings:
            print(f"{arguments.host}: {warning}", file=sys.stderr)
    return host


def _settled_from_memory(spec: VmSpec, host: Host, arguments: argparse.Namespace) -> VmSpec:
    try:
        choice = accel.from_memory(spec, host, emulator.find(spec), base_of(arguments.run_dir))
    except LaunchError:
        choice = None  # no QEMU here, or no directory: the arguments can be printed all the same
    if choice is None:
        print("accelerator: auto, and KVM was not tried yet on this boot", file=sys.stderr)
        return spec
    return choice.spec


def target_of(spec: VmSpec, arguments: argparse.Namespace) -> Target:
    """What will run the VM: the QEMU of this machine, and libvirt only if it is asked for.

    What is printed as XML is for libvirt. For a captured host nothing is known of its programs.
    """
    has_libvirt = arguments.libvirt is not None or arguments.print == "xml"
    if arguments.host is not None:
        return OLDEST if has_libvirt else attrs.evolve(OLDEST, libvirt=None)
    from kvmhooks.live.target import target_for

    target = target_for(spec, has_libvirt=has_libvirt)
    if arguments.libvirt is None:
        return target
    from kvmhooks.live.domain_capabilities import ask
    from kvmhooks.live.libvirt import connected

    with connected(arguments.libvirt) as connection:
        return attrs.evolve(target, domain=ask(connection, spec))
