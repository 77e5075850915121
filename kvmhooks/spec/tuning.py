"""``[tuning]``: what the VM gets of the host, and how its threads are scheduled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import Microseconds, Priority, Rate, Shares, Weight
from kvmhooks.values import ByteSize


@frozen(kw_only=True)
class Bandwidth:
    """So much CPU time in each period."""

    period: Microseconds | None = None
    """The period in microseconds, at most a second; by default 100 ms."""
    quota: Microseconds | None = None
    """The CPU time in each period, in microseconds; by default no limit."""


@frozen(kw_only=True)
class Threads:
    """Threads of one kind: vCPUs (each), the emulator, iothreads (each)."""

    scheduler: Literal["other", "batch", "idle", "fifo", "rr"] = "other"
    """The scheduling class (sched(7)); fifo and rr are real-time."""
    priority: Priority | None = enabled_by(on("scheduler", "fifo", "rr"))
    """The priority of fifo and rr; by default 1."""
    period: Microseconds | None = None
    """The period in microseconds, at most a second; by default 100 ms."""
    quota: Microseconds | None = None
    """The CPU time in each period, in microseconds; by default no limit."""


@frozen(kw_only=True)
class MemoryLimits:
    """Limits on the memory of the whole QEMU, which needs more than the guest has."""

    hard: ByteSize | None = None
    """Beyond it QEMU is killed."""
    soft: ByteSize | None = None
    """Kept to when the host's memory is short."""
    swap: ByteSize | None = None
    """Of memory and swap together."""


@frozen(kw_only=True)
class IoDevice:
    """Limits on one block device of the host."""

    path: Path
    """The device: /dev/nvme0n1."""
    weight: Weight | None = None
    """The share of its time."""
    read_bytes: ByteSize | None = None
    """Of reading, in each second."""
    write_bytes: ByteSize | None = None
    """Of writing, in each second."""
    read_operations: Rate | None = None
    """Of reading, in operations a second."""
    write_operations: Rate | None = None
    """Of writing, in operations a second."""


@frozen(kw_only=True)
class Io:
    """Shares and limits of block I/O."""

    weight: Weight | None = None
    """The share of every device's time."""
    device: tuple[IoDevice, ...] = ()
    """Single devices."""


@frozen(kw_only=True)
class Tuning:
    """Shares, limits and scheduling on the host."""

    shares: Shares | None = None
    """The share of CPU time beside others: cpu.weight, or cpu.shares of cgroup v1."""
    total: Bandwidth = Bandwidth()
    """Of the whole VM."""
    vcpus: Threads = Threads()
    """Of each vCPU."""
    emulator: Threads = Threads()
    """Of QEMU's other threads."""
    iothreads: Threads = Threads()
    """Of each iothread."""
    memory: MemoryLimits = MemoryLimits()
    """Of QEMU's memory."""
    io: Io = Io()
    """Of block I/O."""
