"""What is looked at and settled before a VM is planned; nothing is changed by it."""

from __future__ import annotations

import argparse

from kvm_launch import images, preflight, seed
from kvm_launch.hold import unable
from kvm_launch.user import maker_of, user_of
from kvmhooks.host import Host
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import base_of
from kvmhooks.spec import VmSpec


def settle(arguments: argparse.Namespace, spec: VmSpec, host: Host, keeper: Keeper) -> accel.Choice:
    """Check that all is there that the VM needs, and decide its accelerator.

    Raises ``SpecError`` for what is missing, or may not be opened by the user that QEMU will be.
    """
    # libvirt gives its user the files that a VM needs.
    has_libvirt = arguments.libvirt is not None
    user = None if has_libvirt else user_of(spec)
    binds = has_libvirt or not unable(keeper.door)
    preflight.check(spec, user, has_libvirt=has_libvirt, binds=binds)
    preflight.check_roms(spec, host, user)
    maker = maker_of(spec)
    images.check(spec, maker)
    seed.check(spec, maker)
    choice = accel.choose(spec, host, emulator.find(spec), base_of(arguments.run_dir))
    preflight.check_accel(choice.spec, user)
    return choice
