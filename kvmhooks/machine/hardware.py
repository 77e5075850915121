"""The guest's hardware, as far as it had to be decided: by the target, the host, or the spec's
other words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.machine.clock import GuestClock, choose_clock
from kvmhooks.machine.confidential import KeyCount, LaunchSecurity, choose_security
from kvmhooks.machine.cpu_model import check_names
from kvmhooks.machine.guest_cpu import CpuInterface, choose_interface
from kvmhooks.machine.memory_backing import Backing, choose_backing
from kvmhooks.machine.pci_layout import Layout, lay_out
from kvmhooks.machine.qemu_features import (
    MICROVM,
    MODEL_VERSIONS,
    PASST,
    RUN_WITH_USER,
    Feature,
    FeatureUse,
)
from kvmhooks.machine.storage import DiskPath, ScsiController, choose_disks
from kvmhooks.machine.target import Target
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import devices_of

VHOST_KINDS = {"tap", "bridge", "macvtap"}
"""Interfaces whose packets the host's kernel can move by itself."""


@frozen(kw_only=True)
class Hardware:
    """The guest's hardware, decided."""

    target: Target
    interface: CpuInterface
    clock: GuestClock
    backing: Backing
    irqchip: Literal["on", "split"] | None
    """None: QEMU's own choice for the machine type."""
    disks: tuple[DiskPath, ...]
    """The way of each ``spec.disk``."""
    scsi: tuple[ScsiController, ...]
    vhost: tuple[bool | None, ...]
    """For each ``spec.net`` whether the host's kernel moves its packets; None where it cannot."""
    security: LaunchSecurity | None
    cid: int
    """The guest's vsock address, if it has one."""
    has_run_with: bool
    """QEMU takes its user by ``-run-with``; before 9.1 it was ``-runas``."""
    layout: Layout
    required: tuple[str, ...]
    """The names of the features without which it would be another VM."""
    left_out: tuple[str, ...]
    """The features that were asked for and are not there, with since when they would be."""


@frozen(kw_only=True)
class Decided:
    """The planner's decisions before the hardware's."""

    accel: str
    model: str
    """The CPU model that the guest sees."""
    identity: str
    """The VM's UUID."""
    iothreads: tuple[int | None, ...]
    """The one of each disk that names no others."""
    cells: tuple[int | None, ...]
    """The guest cell that each ``spec.pci`` is near to; None: none, or there is but one."""
    cell_count: int
    keys: Mapping[str, KeyCount]
    """The host's for encrypted guests."""


def choose_hardware(
    spec: VmSpec, host: Host, target: Target, decided: Decided
) -> tuple[Hardware, tuple[str, ...]]:
    """Decide the hardware of a VM for a ``target``, and say why.

    Raises ``PlanError`` for what the VM cannot be without and the target has not.
    """
    accel, identity = decided.accel, decided.identity
    features = FeatureUse(target)
    _check_cells(spec, decided.cell_count)
    _require(spec, features)
    check_names(spec.cpu, host, features, accel=accel)
    interface = choose_interface(spec, features, accel=accel, model=decided.model)
    backing, why_backing = choose_backing(spec)
    disks, scsi = choose_disks(spec, features, identity, decided.iothreads)
    security = choose_security(spec, host, features, accel=accel, keys=decided.keys)
    hardware = Hardware(
        target=target,
        interface=interface,
        clock=choose_clock(spec, features, accel=accel, has_hyperv=bool(interface.hyperv)),
        backing=backing,
        irqchip=_irqchip(spec, features, accel=accel),
        disks=disks,
        scsi=scsi,
        vhost=tuple(_vhost(at, spec, features, accel=accel) for at in range(len(spec.net))),
        security=security,
        cid=(spec.vsock and spec.vsock.cid) or derived_cid(identity),
        has_run_with=RUN_WITH_USER.lacking(target) is None,
        layout=lay_out(spec, disks, scsi, decided.cells),
        required=tuple(features.required),
        left_out=tuple(features.left_out),
    )
    return hardware, why_backing


def _check_cells(spec: VmSpec, cells: int) -> None:
    """Check that memory that is added belongs to a cell that there is."""
    named = {f"memory.dimm[{at}]": each.cell for at, each in enumerate(spec.memory.dimm)}
    named |= {f"memory.virtio[{at}]": each.cell for at, each in enumerate(spec.memory.virtio)}
    for at, cell in named.items():
        if cell >= cells:
            raise PlanError(f"{at}.cell", str(cell), f"a cell of the guest: 0 to {cells - 1}")


def derived_cid(identity: str) -> int:
    """Return a vsock address for the VM with this UUID, always the same: from 1,024 on, 31 bits."""
    digest = hashlib.sha256(f"{identity}/vsock".encode()).digest()
    return 1024 + int.from_bytes(digest[:4], "big") % ((1 << 31) - 1024)


def _require(spec: VmSpec, features: FeatureUse) -> None:
    """Refuse what cannot be left out without another VM coming of it."""
    model = spec.cpu.model
    has_version = re.fullmatch(r".+-v[0-9]+", model) is not None
    asked: tuple[tuple[bool, Feature, str, str], ...] = (
        (has_version, MODEL_VERSIONS, "cpu.model", f'"{model}"'),
        (spec.machine.type == "microvm", MICROVM, "machine.type", '"microvm"'),
        (any(net.type == "passt" for net in spec.net), PASST, "net.type", '"passt"'),
    )
    for is_asked, feature, at, found in asked:
        if is_asked:
            features.require(feature, at, found)
    for present in devices_of(spec):
        for feature, key, found in present.device.needs():
            features.require(feature, present.path_of(key), found)
        for feature, key in present.device.wants():
            features.has(feature, present.path_of(key))


def _irqchip(spec: VmSpec, features: FeatureUse, *, accel: str) -> Literal["on", "split"] | None:
    """Return the irqchip; TDX takes no other than ``split`` (docs/system/i386/tdx.rst)."""
    asked = spec.machine.irqchip
    if spec.security.type == "tdx":
        if asked == "on":
            raise PlanError("machine.irqchip", '"on" with TDX', '"split"')
        return "split"
    if asked != "auto" and accel != "kvm":
        features.leave_out("machine.irqchip", "it is KVM's")
        return None
    return None if asked == "auto" else asked


def _vhost(at: int, spec: VmSpec, features: FeatureUse, *, accel: str) -> bool | None:
    net = spec.net[at]
    if net.type not in VHOST_KINDS or net.model != "virtio":
        return None
    is_there = features.target.vhost_net
    if net.vhost and is_there is False:
        features.leave_out(f"net[{at}].vhost", "the host has no /dev/vhost-net")
        return False
    if net.vhost is not None:
        return net.vhost
    # A bridge's port with vhost is opened by whoever starts QEMU, which its helper cannot do.
    return is_there if accel == "kvm" and net.type != "bridge" else None
