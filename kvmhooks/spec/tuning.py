"""``[tuning]`` and ``[policy]``: what the VM gets of the host, and asks of it.

Each row of ``kvmhooks.policy.SETTINGS`` that no other key says is a key of ``[policy]``, in the
table of its first word: ``power.governor`` is ``governor`` in ``[policy.power]``. A number, a text
or a choice there is one here, too, with the same bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Optional

import attrs
from attrs import frozen

from kvmhooks.policy import GROUPS, SETTINGS, Setting, from_toml
from kvmhooks.spec.enabling import Enabler, enabled_by, on
from kvmhooks.spec.forms import (
    SETTING_TYPES,
    Microseconds,
    Priority,
    Rate,
    Shares,
    Weight,
)
from kvmhooks.values import ByteSize

if TYPE_CHECKING:
    from kvmhooks.spec.model import VmSpec

DESCRIPTION: Final = "description"
"""The key of a field's description in its metadata, where its source has none."""

_ENABLERS: Final[Mapping[str, Enabler]] = {"isolation.exclusive": on("isolation.exclusive", True)}


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


def _field(name: str, setting: Setting) -> Any:
    rules = [_ENABLERS.get(setting.needs, on(setting.needs))] if setting.needs else []
    made = enabled_by(*rules, **{DESCRIPTION: setting.meaning})
    made.type = Optional[SETTING_TYPES[name]]  # noqa: UP045 -- made of values
    return made


def _table(group: str) -> type:
    keys = {
        name.partition(".")[2]: _field(name, setting)
        for name, setting in SETTINGS.items()
        if name.startswith(f"{group}.") and not setting.word
    }
    return _made(f"{group.capitalize()}Policy", keys, GROUPS[group])


def _made(name: str, keys: Mapping[str, Any], meaning: str) -> type:
    made = attrs.make_class(name, dict(keys), frozen=True, kw_only=True)
    made.__doc__ = meaning
    made.__module__ = __name__
    # attrs does this itself since 23.1.
    made.__annotations__ = {key.name: key.type for key in attrs.fields(made)}
    return made


def _tables() -> Iterator[tuple[str, Any]]:
    for group, meaning in GROUPS.items():
        table = _table(group)
        if attrs.fields(table):
            made: Any = attrs.field(default=table(), metadata={DESCRIPTION: meaning})
            made.type = table  # attrs.field() takes it since 23.1 only
            yield group, made


if TYPE_CHECKING:

    class Policy:
        """The settings of the host that the VM asks for while it runs."""

        def __getattr__(self, group: str) -> Any: ...

else:
    Policy = _made(
        "Policy", dict(_tables()), "The settings of the host that the VM asks for while it runs."
    )


def policy_of(spec: VmSpec) -> dict[str, str]:
    """Return the settings that ``[policy]`` says, as claims have them."""
    found = {}
    for name, setting in SETTINGS.items():
        group, _, key = name.partition(".")
        value = None if setting.word else getattr(getattr(spec.policy, group), key)
        if value is not None:
            found[name] = from_toml(value)
    return found


def word_of(at: str) -> str:
    """Return the key of vm.toml that says what an unknown key at a place means; empty for none."""
    below = at.removeprefix("policy.")
    if below in SETTINGS:
        return SETTINGS[below].word or f"policy.{below}"
    return "[[pci]] or [[mdev]]" if at == "policy.devices" else ""
