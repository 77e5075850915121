"""The settings that a VM's metadata may ask of the host, as a table.

The element is ``<kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">``, a child of the domain's
``<metadata>`` (https://libvirt.org/formatdomain.html#general-metadata: one element per
namespace). Its children and their attributes are the rows of ``SETTINGS``; an attribute that is
not there keeps the host as it is, or the row's default.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

NAMESPACE: Final = "urn:kvmhooks:1"


class Setting:
    """One attribute of one child of ``<kvmhooks:vm>``."""

    __slots__ = ("allowed", "default", "expected", "once")

    def __init__(self, allowed: str, expected: str, default: str = "", once: str = "") -> None:
        self.allowed = allowed
        """A regular expression that the whole value matches."""
        self.expected = expected
        """The same for a person."""
        self.default = default
        """The value when the attribute is absent; empty: the host stays as it is."""
        self.once = once
        """The character between items, of which each stands there once, and so does each key in
        one; empty for a value of another form."""

    def allows(self, value: str) -> bool:
        """Return whether the value is one that may stand here."""
        if value.isalnum() and value in self.allowed.split("|"):
            return True
        import re  # noqa: PLC0415 -- as long as the interpreter's start, and mostly not needed

        return re.fullmatch(self.allowed, value, re.ASCII) is not None

    def repeated(self, value: str) -> str:
        """Return what is twice in a value, though it may stand there once; empty for nothing."""
        if not self.once:
            return ""
        items = [
            [word.partition("=")[0] for word in item.split(" ")] for item in value.split(self.once)
        ]
        for at, (place, *keys) in enumerate(items):
            if any(other == place for other, *_ in items[at + 1 :]):
                return place
            for key in keys:
                if keys.count(key) > 1:
                    return key
        return ""


_YES_NO: Final = ("yes|no", '"yes" or "no"')
_WORD: Final = "[a-z0-9_-]{1,32}"
_USES: Final = "none|mounted|swap|held|route|bridge|console|screen|functions|remapping"
_ADDRESS: Final = r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_POOL: Final = rf"{_ADDRESS}=[1-9]\d{{0,3}}"
_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_MEDIATED: Final = rf"{_UUID}={_ADDRESS}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}"
_VLAN: Final = r"(0|[1-9]\d{0,2}|[1-3]\d{3}|40[0-8]\d|409[0-4])"
_FUNCTION: Final = (
    rf"{_ADDRESS}/(0|[1-9]\d{{0,3}})( (mac=[0-9a-f][02468ace](:[0-9a-f]{{2}}){{5}}|vlan={_VLAN}"
    r"|trust=(yes|no)|spoofchk=(yes|no)|rate=(0|[1-9]\d{0,6})))+"
)
"""Numbers are as the kernel tells them, and a MAC address is one device's."""

_CLAMP: Final = r"\d{1,3}|10[01]\d|102[0-4]"

SETTINGS: Final[Mapping[str, Setting]] = {
    "isolation.exclusive": Setting(*_YES_NO, default="no"),
    "isolation.strict": Setting(*_YES_NO, default="no"),
    "isolation.siblings": Setting("share|idle", '"share" or "idle"', default="share"),
    "isolation.irqs": Setting(*_YES_NO, default="yes"),
    "isolation.tasks": Setting(*_YES_NO, default="yes"),
    "isolation.workqueues": Setting(*_YES_NO, default="yes"),
    "isolation.network": Setting(*_YES_NO, default="yes"),
    "isolation.vfio": Setting(
        "spread|one|housekeeping", '"spread", "one" or "housekeeping"', default="spread"
    ),
    "isolation.watchdog": Setting(*_YES_NO, default="no"),
    "power.governor": Setting(_WORD, 'a cpufreq governor such as "performance"'),
    "power.epp": Setting(_WORD, 'an energy preference such as "performance" or "128"'),
    "power.latency": Setting(r"\d{1,9}|n/a", 'microseconds, or "n/a" for no wake-up delay at all'),
    "power.boost": Setting(*_YES_NO),
    "memory.hugepages": Setting("allocate|keep", '"allocate" or "keep"', default="allocate"),
    "memory.thp": Setting("always|madvise|never", '"always", "madvise" or "never"'),
    "memory.ksm": Setting("[012]", '"0", "1" or "2"'),
    "memory.numa_balancing": Setting("[0-3]", "a number from 0 to 3"),
    "memory.stat_interval": Setting(r"\d{1,6}", "seconds"),
    "kernel.rt_runtime": Setting(r"-1|\d{1,9}", "microseconds, or -1 for no limit"),
    "kernel.timer_migration": Setting("[01]", '"0" or "1"'),
    "kernel.nmi_watchdog": Setting("[01]", '"0" or "1"'),
    "kernel.perf_cpu_limit": Setting(r"\d{1,3}", "per cent, 0 for no limit"),
    "kernel.perf_sample_rate": Setting(r"[1-9]\d{0,8}", "samples a second"),
    "kernel.halt_poll": Setting(r"\d{1,9}", "nanoseconds, 0 for none"),
    "storage.scheduler": Setting(_WORD, 'an I/O scheduler such as "none"'),
    "storage.requests": Setting(r"\d{1,6}", "a queue depth"),
    "devices.managed": Setting(*_YES_NO, default="no"),
    "devices.pools": Setting(
        rf"({_POOL})(,({_POOL})){{0,19}}",
        'virtual functions to make, such as "0000:3b:00.0=8"',
        once=",",
    ),
    "devices.mdevs": Setting(
        rf"({_MEDIATED})(,({_MEDIATED})){{0,19}}",
        'mediated devices to make: "UUID=0000:3b:00.0/nvidia-35"',
        once=",",
    ),
    "devices.functions": Setting(
        rf"{_FUNCTION}(;{_FUNCTION}){{0,99}}",
        "functions with a VLAN up to 4094, a MAC address of one device, trust, spoofchk or rate, "
        'such as "0000:3b:00.0/1 vlan=5 trust=yes"',
        once=";",
    ),
    "devices.allow": Setting(
        rf"({_USES})(,({_USES})){{0,9}}",
        'uses of the host\'s that may end, such as "route,bridge"',
        default="none",
    ),
    "threads.vcpus": Setting(
        r"(fifo|rr):([1-9]|[1-4]\d)",
        '"fifo:1" to "fifo:49", or "rr:…": interrupt threads have 50',
    ),
    "threads.uclamp_min": Setting(_CLAMP, "a number from 0 to 1024"),
    "threads.uclamp_max": Setting(_CLAMP, "a number from 0 to 1024"),
    "threads.sched_core": Setting(
        "none|vcpus|emulator", '"none", "vcpus" or "emulator"', default="none"
    ),
    "threads.vhost": Setting(
        r"emulator|keep|\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,99}",
        '"emulator", "keep" or a CPU list',
        default="emulator",
    ),
}
"""Every attribute, as ``element.attribute``."""


def check(settings: Mapping[str, str], place: str = "kvmhooks metadata") -> dict[str, str]:
    """Return the settings that differ from their defaults, each checked.

    Raises ``IsolationError`` with the first unknown or wrong one, and the place where it stands.
    """
    kept = {}
    for name, value in settings.items():
        known = SETTINGS.get(name)
        if known is None:
            raise IsolationError(
                f"{place}: {name}: no such setting; did you mean {nearest(name, SETTINGS)}?"
            )
        if not known.allows(value):
            raise IsolationError(
                f"{place}: {name}: found {value[:40]!r}, expected {known.expected}"
            )
        twice = known.repeated(value)
        if twice:
            raise IsolationError(f"{place}: {name}: found {twice} twice, expected it once")
        if value != known.default:
            kept[name] = value
    return kept


def value_of(settings: Iterable[tuple[str, str]], name: str) -> str:
    """Return the value of ``name`` in ``settings``, or its default."""
    return dict(settings).get(name, SETTINGS[name].default)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like ``name``."""
    import difflib  # noqa: PLC0415 -- only for a message: the hook must not pay for it

    return max(known, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())
