"""The checks before a VM is planned: a start asks QEMU what it can do here, a dry run does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from kvm_launch.host.isolation import registry_of
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare.preparation import prepare
from kvmhooks.host import Host, Kvm
from kvmhooks.inventory.hypervisor import NOT_TRIED, Hypervisor
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.system.system import System
from kvmhooks.spec import parse_vm

VM = """\
name = "vm"
cpu = { vcpus = 1, model = "EPYC" }
memory.size = "64MiB"
machine = { accel = "kvm", emulator = "EMULATOR" }
"""
UNASKED = f"vm: cpu.model: {NOT_TRIED} on this boot: planned as if it works"


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_only_a_start_asks_qemu_under_kvm(tmp_path: Path, *, is_dry_run: bool) -> None:
    """Both tell where they stand: that nobody asked, or what QEMU said."""
    emulator = tmp_path / "qemu"
    emulator.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/runs\necho 'no KVM' >&2\nexit 1\n")
    emulator.chmod(0o755)
    spec = parse_vm(VM.replace("EMULATOR", str(emulator)), folder=tmp_path)
    inventory = Inventory(
        host=Host(kvm=Kvm(available=True)),
        hypervisors={"vm": Hypervisor(kvm="not tried")},
        warnings=(UNASKED,),
    )
    options = LaunchOptions(is_dry_run=is_dry_run, run_dir=tmp_path / "run")
    found = prepare(options, spec, inventory, registry_of(System(str(tmp_path))))
    if is_dry_run:
        assert found == inventory
        assert not (tmp_path / "runs").exists()
        return
    told = f"vm: cpu.model: KVM could not be asked: {emulator}: no KVM: planned as if it works"
    assert found == evolve(inventory, warnings=(told,))
    assert "none,accel=kvm" in (tmp_path / "runs").read_text()
