"""``[clock]``: what time it is in the guest, and which timers tell it."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.spec.forms import Hertz


@frozen(kw_only=True)
class Clock:
    """The guest's clock and timers."""

    offset: Literal["auto", "utc", "localtime"] = "auto"
    """What the real-time clock shows at the start; auto: localtime for Windows, else utc."""
    rtc_track: Literal["host", "guest"] = "host"
    """Whether the real-time clock goes on while the guest is stopped."""
    rtc_ticks: Literal["delay", "catchup"] = "delay"
    """What becomes of the real-time clock's lost interrupts: Windows wants catchup."""
    hpet: bool = False
    """Whether there is an HPET: slow to read, and used only where there is nothing better."""
    kvmclock: bool | None = None
    """Whether Linux gets KVM's clock; by default under KVM."""
    tsc_frequency: Hertz | None = None
    """The TSC's frequency in Hz; by default the host's."""
