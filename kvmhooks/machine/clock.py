"""The guest's clock."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.machine.qemu_features import FeatureUse
from kvmhooks.spec.model import VmSpec


@frozen(kw_only=True)
class GuestClock:
    """The guest's clocks."""

    offset: Literal["utc", "localtime"]
    kvmclock: bool | None
    """None: as QEMU has it, which is on under KVM."""
    hyperv_clock: bool
    """Windows gets Hyper-V's reference clock."""
    tsc_hertz: int | None


def choose_clock(spec: VmSpec, features: FeatureUse, *, accel: str, has_hyperv: bool) -> GuestClock:
    """Return local time for Windows; what is KVM's only under KVM."""
    asked = spec.clock
    is_windows = spec.guest.os == "windows"
    is_kvm = accel == "kvm"
    offset = asked.offset
    if offset == "auto":
        offset = "localtime" if is_windows else "utc"
    for key in ("kvmclock", "tsc_frequency"):
        if not is_kvm and getattr(asked, key):
            features.leave_out(f"clock.{key}", "it is KVM's")
    return GuestClock(
        offset=offset,
        kvmclock=asked.kvmclock if is_kvm else None,
        hyperv_clock=has_hyperv,
        tsc_hertz=asked.tsc_frequency if is_kvm else None,
    )
