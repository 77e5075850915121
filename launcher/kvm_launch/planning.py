"""From a spec to a plan for this host, or for the captured one that ``--host`` names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvmhooks.errors import LaunchError
from kvmhooks.host import Host, read
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import default_base
from kvmhooks.placement import Plan, parts_of, plan
from kvmhooks.spec import VmSpec


def plan_to_print(spec: VmSpec, arguments: argparse.Namespace) -> Plan:
    """The plan for ``--print``, which starts nothing: no probe of KVM either.

    A verdict of an earlier probe is used; without one ``auto`` is KVM if it is there, and a
    message says so.
    """
    host = read_host(arguments, spec)
    if spec.machine.accel == "auto" and arguments.host is None:
        spec = _settled_from_memory(spec, host, arguments)
    return plan(spec, host)


def read_host(arguments: argparse.Namespace, spec: VmSpec) -> Host:
    """The host to plan ``spec`` for; what is wrong with it goes to stderr."""
    host = read("/" if arguments.host is None else arguments.host, parts=parts_of(spec))
    if arguments.host is not None:
        for warning in host.warnings:
            print(f"{arguments.host}: {warning}", file=sys.stderr)
    return host


def base_of(arguments: argparse.Namespace) -> Path:
    """Where this user's VMs have their directories."""
    return arguments.run_dir.absolute() if arguments.run_dir else default_base()


def _settled_from_memory(spec: VmSpec, host: Host, arguments: argparse.Namespace) -> VmSpec:
    try:
        choice = accel.from_memory(spec, host, emulator.find(spec), base_of(arguments))
    except LaunchError:
        choice = None  # no QEMU here, or no directory: the arguments can be printed all the same
    if choice is None:
        print("accelerator: auto, and KVM was not tried yet on this boot", file=sys.stderr)
        return spec
    return choice.spec
