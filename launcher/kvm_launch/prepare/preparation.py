"""The checks and decisions before a VM is planned; nothing is changed by them."""

from __future__ import annotations

from kvm_launch.host.isolation import unable
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare import checks, cloud_init, images
from kvm_launch.prepare.user import maker_of, user_of
from kvmhooks.host import Host
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.kvm import accel
from kvmhooks.qemu import emulator
from kvmhooks.qemu.run_dir import base_of
from kvmhooks.spec.model import VmSpec


def prepare(
    options: LaunchOptions, spec: VmSpec, host: Host, registry: Registry
) -> accel.AcceleratorChoice:
    """Check that all is there that the VM needs, and decide its accelerator.

    Raises ``SpecError`` for what is missing, or may not be opened by the user that QEMU will be.
    """
    # libvirt gives its user the files that a VM needs.
    has_libvirt = options.libvirt_uri is not None
    user = None if has_libvirt else user_of(spec)
    binds = has_libvirt or not unable(registry.system)
    checks.check(spec, user, has_libvirt=has_libvirt, binds=binds)
    checks.check_roms(spec, host, user)
    maker = maker_of(spec)
    images.check(spec, maker)
    cloud_init.check(spec, maker)
    choice = accel.choose(spec, host, emulator.find(spec), base_of(options.run_dir))
    checks.check_accel(choice.spec, user)
    return choice
