"""The settings of the host that a VM may ask for: the one table.

Metadata of libvirt's domains, ``vm.toml``, its schema and manual, the administrator's files and
claims have them from here.

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


_SWITCH: Final = "yes|no"


class Setting:
    """One thing that a VM may ask of the host: an attribute of a child of ``<kvmhooks:vm>``."""

    __slots__ = (
        *("allowed", "default", "expected", "meaning", "needs", "numbers", "once", "texts", "word"),
    )

    def __init__(  # noqa: PLR0913 -- the columns of the table
        self,
        allowed: str,
        expected: str,
        meaning: str,
        *,
        default: str = "",
        once: str = "",
        needs: str = "",
        word: str = "",
        numbers: tuple[int, int] | None = None,
        texts: str | None = None,
    ) -> None:
        self.allowed = allowed
        """A regular expression that the whole value matches."""
        self.expected = expected
        """The same for a person."""
        self.meaning = meaning
        """The description of it in vm.toml."""
        self.default = default
        """The value when the attribute is absent; empty: the host stays as it is."""
        self.once = once
        """The character between items, of which each stands there once, and so does each key in
        one; empty for a value of another form."""
        self.needs = needs
        """The key of vm.toml without which it does nothing; empty for none."""
        self.word = word
        """The key of vm.toml that says it; empty for its own name below ``policy``."""
        self.numbers = numbers
        """The least and the highest, of one that is a number in TOML."""
        self.texts = ("" if numbers else allowed) if texts is None else texts
        """A regular expression of what is a text in TOML; empty where nothing is."""

    @property
    def is_for_any(self) -> bool:
        """It does something for every VM: vm.toml has it, and it needs no other key."""
        return not (self.word or self.needs)

    @property
    def is_switch(self) -> bool:
        """It is true or false in TOML."""
        return self.allowed == _SWITCH

    def to_toml(self, value: str) -> bool | int | str:
        """Return a value as TOML has it."""
        if self.is_switch:
            return value == "yes"
        return int(value) if self.numbers and value not in self.texts.split("|") else value

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


_YES_NO: Final = (_SWITCH, '"yes" or "no"')
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

OWN: Final = "isolation.exclusive"
"""Without CPUs of its own a VM has none that this could be of."""

GROUPS: Final[Mapping[str, str]] = {
    "isolation": "The parts of the host that leave the VM's own CPUs alone.",
    "power": "Clocks, idle states and energy of the host's CPUs.",
    "memory": "The host's memory management.",
    "kernel": "The host kernel's timers, limits and watchdogs.",
    "storage": "The queues of the host's disks that the VM has whole.",
    "devices": "Devices that are made, set and bound for the VM.",
    "threads": "QEMU's threads.",
}
"""The first words of the settings."""

SETTINGS: Final[Mapping[str, Setting]] = {
    "isolation.exclusive": Setting(
        *_YES_NO, "Its vCPUs' CPUs are theirs alone.", default="no", word="isolation.exclusive"
    ),
    "isolation.strict": Setting(
        *_YES_NO,
        "It must not start when any part of what it asks for cannot be met.",
        default="no",
        word="isolation.strict",
    ),
    "isolation.siblings": Setting(
        "share|idle",
        '"share" or "idle"',
        "Other VMs may use the siblings of its CPUs, or not.",
        default="share",
        word="cpu.smt",
    ),
    "isolation.irqs": Setting(
        *_YES_NO, "Interrupts of the host go to other CPUs.", default="yes", needs=OWN
    ),
    "isolation.tasks": Setting(
        *_YES_NO,
        "Tasks of the host run on other CPUs, kernel threads too.",
        default="yes",
        needs=OWN,
    ),
    "isolation.workqueues": Setting(
        *_YES_NO, "Work queues of the kernel run on other CPUs.", default="yes", needs=OWN
    ),
    "isolation.network": Setting(
        *_YES_NO,
        "Packets of the host are steered to other CPUs (RPS, XPS).",
        default="yes",
        needs=OWN,
    ),
    "isolation.vfio": Setting(
        "spread|one|housekeeping",
        '"spread", "one" or "housekeeping"',
        "Interrupts of its devices go to all of its vCPUs' CPUs in turn, to the first one's, or to "
        "the host's.",
        default="spread",
        needs=OWN,
    ),
    "isolation.watchdog": Setting(
        *_YES_NO,
        "The kernel's watchdogs for lockups look at other CPUs only.",
        default="no",
        needs=OWN,
    ),
    "power.governor": Setting(
        _WORD,
        'a cpufreq governor such as "performance"',
        "The cpufreq governor of its own CPUs.",
        needs=OWN,
    ),
    "power.epp": Setting(
        _WORD,
        'an energy preference such as "performance" or "128"',
        "The energy-performance preference of its own CPUs.",
        needs=OWN,
    ),
    "power.latency": Setting(
        r"\d{1,9}|n/a",
        'microseconds, or "n/a" for no wake-up delay at all',
        "The microseconds that its own CPUs may take to wake up, which bounds their idle states; "
        "0: without bound; n/a: no delay at all, they poll.",
        numbers=(0, 999_999_999),
        texts="n/a",
        needs=OWN,
    ),
    "power.boost": Setting(*_YES_NO, "CPUs of the host may clock above their base frequency."),
    "memory.hugepages": Setting(
        "allocate|keep",
        '"allocate" or "keep"',
        "Huge pages that it needs and that are not there are allocated at its start and given back "
        "after it, or the pools stay as they are.",
        default="allocate",
        needs="memory.hugepages",
    ),
    "memory.thp": Setting(
        "always|madvise|never",
        '"always", "madvise" or "never"',
        "Transparent huge pages of the host: for all memory, where a program asks, or none.",
    ),
    "memory.ksm": Setting(
        "[012]",
        '"0", "1" or "2"',
        "Equal pages are merged (1), or not (0), or what was merged is parted too (2).",
        numbers=(0, 2),
    ),
    "memory.numa_balancing": Setting(
        "[0-3]",
        "a number from 0 to 3",
        "Pages follow the tasks that use them (1), cold ones go to slower memory (2), both (3), or "
        "neither (0).",
        numbers=(0, 3),
    ),
    "memory.stat_interval": Setting(
        r"\d{1,6}",
        "seconds",
        "The seconds between two updates of each CPU's memory statistics.",
        numbers=(0, 999_999),
    ),
    "kernel.rt_runtime": Setting(
        r"-1|\d{1,9}",
        "microseconds, or -1 for no limit",
        "The microseconds of each period that real-time tasks may run; -1: all.",
        numbers=(-1, 999_999_999),
    ),
    "kernel.timer_migration": Setting(
        "[01]",
        '"0" or "1"',
        "Timers of an idle CPU may go to another one (1), or stay (0).",
        numbers=(0, 1),
    ),
    "kernel.nmi_watchdog": Setting(
        "[01]",
        '"0" or "1"',
        "The watchdog for hard lockups is on (1) or off (0); it takes a performance counter.",
        numbers=(0, 1),
    ),
    "kernel.perf_cpu_limit": Setting(
        r"\d{1,3}",
        "per cent, 0 for no limit",
        "The CPU time that samples of perf may take, in per cent; 0: without limit.",
        numbers=(0, 999),
    ),
    "kernel.perf_sample_rate": Setting(
        r"[1-9]\d{0,8}",
        "samples a second",
        "The most samples that perf may take in a second.",
        numbers=(1, 999_999_999),
    ),
    "kernel.halt_poll": Setting(
        r"\d{1,9}",
        "nanoseconds, 0 for none",
        "The most nanoseconds that KVM waits for an idle vCPU before its CPU sleeps; 0: none.",
        numbers=(0, 999_999_999),
    ),
    "storage.scheduler": Setting(
        _WORD,
        'an I/O scheduler such as "none"',
        "The I/O scheduler of the host's disks that it has whole (/dev/...).",
    ),
    "storage.requests": Setting(
        r"\d{1,6}",
        "a queue depth",
        "The depth of the queues of the host's disks that it has whole (/dev/...).",
        numbers=(0, 999_999),
    ),
    "devices.managed": Setting(
        *_YES_NO,
        "Its devices go to vfio-pci and back with it.",
        default="no",
        word="pci[].managed",
    ),
    "devices.pools": Setting(
        rf"({_POOL})(,({_POOL})){{0,19}}",
        'virtual functions to make, such as "0000:3b:00.0=8"',
        "Virtual functions to make.",
        once=",",
        word="pci[].sriov",
    ),
    "devices.mdevs": Setting(
        rf"({_MEDIATED})(,({_MEDIATED})){{0,19}}",
        'mediated devices to make: "UUID=0000:3b:00.0/nvidia-35"',
        "Mediated devices to make.",
        once=",",
        word="mdev[].type",
    ),
    "devices.functions": Setting(
        rf"{_FUNCTION}(;{_FUNCTION}){{0,99}}",
        "functions with a VLAN up to 4094, a MAC address of one device, trust, spoofchk or rate, "
        'such as "0000:3b:00.0/1 vlan=5 trust=yes"',
        "The powers that the card gives its virtual functions.",
        once=";",
        word="pci[].sriov",
    ),
    "devices.allow": Setting(
        rf"({_USES})(,({_USES})){{0,9}}",
        'uses of the host\'s that may end, such as "route,bridge"',
        "Uses of the host's that may end with its devices.",
        default="none",
        word="pci[].allow",
    ),
    "threads.vcpus": Setting(
        r"(fifo|rr):([1-9]|[1-4]\d)",
        '"fifo:1" to "fifo:49", or "rr:…": interrupt threads have 50',
        "The scheduling class of its vCPUs, and their priority.",
        word="tuning.vcpus.scheduler",
    ),
    "threads.uclamp_min": Setting(
        _CLAMP,
        "a number from 0 to 1024",
        "The share of a CPU's capacity that a vCPU counts for at least, of 1024.",
        numbers=(0, 1024),
    ),
    "threads.uclamp_max": Setting(
        _CLAMP,
        "a number from 0 to 1024",
        "The share of a CPU's capacity that a vCPU counts for at most, of 1024.",
        numbers=(0, 1024),
    ),
    "threads.sched_core": Setting(
        "none|vcpus|emulator",
        '"none", "vcpus" or "emulator"',
        "The threads that share cores with each other only (core scheduling): none, its vCPUs, or "
        "all of QEMU's.",
        default="none",
    ),
    "threads.vhost": Setting(
        r"emulator|keep|\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?){0,99}",
        '"emulator", "keep" or a CPU list',
        "The CPUs of its vhost workers: the emulator's, those that they have, or a list.",
        default="emulator",
        needs=OWN,
    ),
}
"""Every setting, as ``element.attribute``; ``vm.toml`` and the administrator's files have tables
and keys of the same names."""


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


def from_toml(value: bool | int | str) -> str:  # noqa: FBT001 -- a value of TOML
    """Return a value of TOML as the metadata has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip()


def value_of(settings: Iterable[tuple[str, str]], name: str) -> str:
    """Return the value of ``name`` in ``settings``, or its default."""
    return dict(settings).get(name, SETTINGS[name].default)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like ``name``."""
    import difflib  # noqa: PLC0415 -- only for a message: the hook must not pay for it

    return max(known, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())
