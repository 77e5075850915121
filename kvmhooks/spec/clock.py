"""``[clock]``: what time it is in the guest, and which timers tell it."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.spec.forms import Hertz


@frozen(kw_only=True)
class Clock:
    """The guest's clock and timers."""

    offset: Literal["auto", "utc", "localtime"] = "auto"
    """The time that the real-time clock shows at the start; auto: localtime for Windows, else utc.
    """
    rtc_track: Literal["host", "guest"] = "host"
    """The clock that the real-time clock follows: the host's, or the guest's, which stops with it.
    """
    rtc_ticks: Literal["delay", "catchup"] = "delay"
    """The fate of the real-time clock's lost interrupts: Windows wants catchup."""
    hpet: bool = False
    """An HPET: slow to read, and used only where there is nothing better."""
    kvmclock: bool | None = None
    """KVM's clock for Linux; by default under KVM."""
    tsc_frequency: Hertz | None = None
    """The TSC's frequency in Hz; by default the host's."""
