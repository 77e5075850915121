"""The checks and decisions before a VM is planned; nothing is changed by them."""

from __future__ import annotations

from attrs import evolve

from kvm_launch.host.isolation import unable
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare import checks, cloud_init, images
from kvm_launch.prepare.planning import sources_of
from kvm_launch.prepare.user import maker_of, user_of
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.qemu import emulator
from kvmhooks.qemu.run_dir import base_of, check_free
from kvmhooks.spec.model import VmSpec
from kvmhooks.survey.survey import ask_cpus, try_kvm


def prepare(
    options: LaunchOptions, spec: VmSpec, inventory: Inventory, registry: Registry
) -> Inventory:
    """Check that all is there that the VM needs, and try KVM for one that is to start.

    Raises ``SpecError`` for what is missing, or may not be opened by the user that QEMU will be, as
    well as ``LaunchError`` for a dry run of a VM that runs: its start would find that out last.
    """
    # libvirt gives its user the files that a VM needs.
    has_libvirt = options.libvirt_uri is not None
    user = None if has_libvirt else user_of(spec)
    binds = has_libvirt or not unable(registry.system)
    checks.check(spec, user, has_libvirt=has_libvirt, binds=binds)
    checks.check_roms(spec, inventory.host, user)
    maker = maker_of(spec)
    images.check(spec, maker)
    cloud_init.check(spec, maker)
    emulator.find(spec)
    if options.is_dry_run and not (has_libvirt or options.is_migration):
        check_free(base_of(options.run_dir), spec.name)
    if not options.is_dry_run:
        sources = sources_of(options, registry.system)
        inventory = ask_cpus(try_kvm(inventory, sources, spec), sources, spec)
    hypervisor = inventory.hypervisor_of(spec.name)
    accel, _ = hypervisor.accelerator(spec.machine.accel, inventory.host)
    checks.check_accel(evolve(spec, machine=evolve(spec.machine, accel=accel)), user)
    return inventory
