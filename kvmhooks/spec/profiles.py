"""Profiles: sets of defaults for a kind of work, each with its reason.

A profile stands under the words of a ``vm.toml``: what the file says itself always wins. Where the
host cannot serve a default, the planner takes the next value that the profile names for it, and
says so; where it names none, the VM is refused as if its file had said it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from kvmhooks.values import ByteSize

Document = dict[str, Any]


@frozen(kw_only=True)
class Default:
    """The value that a profile gives to one key."""

    at: str
    """The key: ``cpu.placement``; ``net[].queues`` is that of each interface."""
    value: Any
    """The value itself; a function makes it of the document."""
    why: str
    instead: tuple[Any, ...] = ()
    """The values to try in turn where the host cannot serve it; none of these: the VM is refused.
    """
    blamed: tuple[str, ...] = ()
    """Further keys at which the planner refuses what this default asks for."""
    only_if: Callable[[Document], bool] | None = None
    """Of a list's tables, those that have the key at all."""
    beside: tuple[str, ...] = ()
    """The keys for whose sake it is: where one is off, it is left out."""


@frozen(kw_only=True)
class Applied:
    """A default that was applied, and can still be given up."""

    at: str
    instead: tuple[Any, ...]
    blamed: tuple[str, ...]
    beside: tuple[str, ...] = ()


_QUEUED: Final = {"tap", "macvtap", "vhost-user"}


def _queues(document: Document) -> int:
    cpu = document.get("cpu")
    vcpus = cpu.get("vcpus") if isinstance(cpu, dict) else None
    return min(vcpus, 8) if isinstance(vcpus, int) and vcpus > 0 else 1


def _is_queued(net: Document) -> bool:
    kind = net.get("type")
    return isinstance(kind, str) and kind in _QUEUED and net.get("model", "virtio") == "virtio"


_ENTROPY = Default(
    at="rng.source", value="urandom", why="a guest that boots has no randomness of its own yet"
)
_UNMERGED = Default(
    at="memory.merge",
    value=False,
    why="merging equal pages scans memory and lets guests learn of each other's",
)
_BALLOON = (
    Default(at="balloon.enabled", value=True, why="free memory can go back to the host"),
    Default(
        at="balloon.free_page_reporting",
        value=True,
        why="the guest tells of pages that it freed, without being asked",
    ),
)
_DEDICATED = Default(
    at="cpu.placement",
    value="dedicated",
    why="no vCPU waits for another VM's, and caches stay warm",
    instead=("shared",),
    blamed=("cpu.vcpus",),
)
_PAGES = Default(
    at="memory.hugepages",
    value="auto",
    why="fewer levels of page tables and entries of the TLB: the largest that fit",
    instead=(False,),
    blamed=("memory.size",),
)
_QUEUES = Default(
    at="net[].queues",
    value=_queues,
    why="a pair of queues for each vCPU, 8 at most: no vCPU sends through another's",
    only_if=_is_queued,
)
_AGENT = Default(
    at="guest.agent", value=True, why="the host can freeze file systems and shut down cleanly"
)

_QUIET: Final = (
    Default(
        at="policy.power.governor",
        value="performance",
        why="the clock of its CPUs is high before there is work, not some time after",
    ),
    Default(
        at="policy.power.latency",
        value="n/a",
        why="its CPUs poll where the host idles: to wake from a deep state takes long",
    ),
    Default(
        at="policy.isolation.watchdog",
        value=True,
        why="the watchdogs for lockups would interrupt its CPUs at times of their own",
    ),
    Default(
        at="policy.memory.thp",
        value="never",
        why="nobody looks for memory to make huge pages of, nor moves it, while a task waits",
        beside=("isolation.exclusive",),
    ),
    Default(
        at="policy.memory.numa_balancing",
        value=0,
        why="it unmaps pages to learn who uses them, and this memory stays where it is",
        beside=("isolation.exclusive",),
    ),
    Default(
        at="policy.memory.stat_interval",
        value=120,
        why="each CPU counts its memory once in so many seconds, and not in every one",
        beside=("isolation.exclusive",),
    ),
    Default(
        at="policy.kernel.timer_migration",
        value=0,
        why="timers of idle CPUs of the host do not come to busy ones, which its are",
        beside=("isolation.exclusive",),
    ),
    Default(
        at="policy.kernel.rt_runtime",
        value=-1,
        why="before kernel 6.12 a vCPU that never sleeps is held for 50 ms of each second",
        beside=("isolation.exclusive", "cpu.realtime"),
    ),
)
"""The host around a VM whose worst case counts. Halt polling is none of it: with ``cpu.cpu_pm`` a
halted vCPU does not leave the guest, so KVM polls for none."""

PROFILES: Final[Mapping[str, tuple[str, tuple[Default, ...]]]] = {
    "general": (
        "Any work, beside other VMs: memory goes back to the host, nothing is reserved.",
        (_ENTROPY, *_BALLOON, _AGENT),
    ),
    "compute": (
        "Numbers: every cycle and all of the memory's bandwidth.",
        (
            _DEDICATED,
            _PAGES,
            Default(
                at="cpu.caches",
                value="host",
                why="libraries choose their block sizes by the caches that they see",
            ),
            _UNMERGED,
            _ENTROPY,
        ),
    ),
    "database": (
        "A large memory that is touched everywhere, and a disk that must answer quickly.",
        (
            _DEDICATED,
            _PAGES,
            _UNMERGED,
            Default(
                at="cpu.poll_control",
                value=True,
                why="an idle vCPU polls for a moment in the guest: answers of the disk come sooner",
            ),
            Default(
                at="disk[].cache",
                value="none",
                why="the database has a cache of its own: another one only takes memory",
            ),
            _ENTROPY,
            _AGENT,
        ),
    ),
    "web": (
        "Many connections and short work, with more vCPUs than CPUs.",
        (
            Default(
                at="cpu.placement",
                value="shared",
                why="load comes and goes: what one VM leaves another takes",
            ),
            _QUEUES,
            *_BALLOON,
            _ENTROPY,
            _AGENT,
        ),
    ),
    "realtime": (
        "Trading, audio, radio: the worst case counts, not the mean.",
        (
            Default(
                at="cpu.placement",
                value="dedicated",
                why="a vCPU that shares its CPU waits for a time slice",
            ),
            Default(
                at="cpu.smt",
                value="isolate",
                why="a busy sibling takes half of a core at times that nobody chooses",
            ),
            Default(
                at="cpu.realtime",
                value=True,
                why="nothing of the host but its own real-time threads comes before a vCPU",
            ),
            Default(
                at="isolation.exclusive",
                value=True,
                why="no task and no movable interrupt of the host runs on the vCPUs' CPUs",
            ),
            Default(
                at="memory.hugepages",
                value="1GiB",
                why="no page faults and few misses of the TLB",
                instead=(ByteSize.parse("2MiB"),),
                blamed=("memory.size",),
            ),
            Default(at="memory.locked", value=True, why="a page that was swapped out costs a read"),
            _UNMERGED,
            Default(
                at="cpu.cpu_pm",
                value=True,
                why="the guest idles without leaving to the host, so it wakes at once",
            ),
            Default(
                at="cpu.pmu",
                value=False,
                why="the counters' interrupts, and their being saved and restored, take time",
            ),
            *_QUIET,
            _ENTROPY,
        ),
    ),
    "desktop": (
        "A person in front of a screen, Windows or Linux, often with a GPU passed through.",
        (
            _DEDICATED,
            Default(at="usb.controller", value="xhci", why="keyboards, sticks and headsets"),
            Default(
                at="input",
                value=[{"type": "tablet"}],
                why="the pointer is where the person's is, without being caught",
            ),
            Default(at="graphics.type", value="vnc", why="a screen that any viewer shows"),
            Default(at="sound.model", value="ich9", why="every system has its driver"),
            _ENTROPY,
            _AGENT,
        ),
    ),
    "edge": (
        "A small machine on a small host far away: little memory, nobody there to press a button.",
        (
            Default(
                at="cpu.iothreads", value=0, why="a thread more costs memory, and the disk is slow"
            ),
            *_BALLOON,
            Default(
                at="balloon.deflate_on_oom",
                value=True,
                why="a guest that has given too much back gets it again before it kills",
            ),
            Default(
                at="watchdog.model",
                value="i6300esb",
                why="a guest that hangs is reset without anyone there",
            ),
            _ENTROPY,
        ),
    ),
    "confidential": (
        "The host must not read the guest: its memory is encrypted by the processor.",
        (
            Default(
                at="security.type",
                value="sev-snp",
                why="integrity too: the host can neither read nor replay the guest's memory",
                instead=("tdx", "sev-es"),
            ),
            _UNMERGED,
            Default(
                at="balloon.enabled",
                value=False,
                why="encrypted pages cannot be given back one by one",
            ),
        ),
    ),
}
"""Name: what it is for, and its defaults."""


def with_profile(document: Document) -> tuple[Document, tuple[Applied, ...]]:
    """Return the document with its profile's defaults under its own words; some can give way.

    A document without a profile, or with one that there is not, is given back as it is.
    """
    name = document.get("profile")
    if not isinstance(name, str) or name not in PROFILES:
        return document, ()
    made = {key: _copied(value) for key, value in document.items()}
    applied = []
    for default in PROFILES[name][1]:
        for table, key, at in _places(made, default.at):
            if key in table or (default.only_if is not None and not default.only_if(table)):
                continue
            value = default.value(made) if callable(default.value) else default.value
            table[key] = _copied(value)
            applied.append(
                Applied(
                    at=at, instead=default.instead, blamed=default.blamed, beside=default.beside
                )
            )
    return made, tuple(applied)


def without(document: Document, *places: str) -> Document:
    """Return the document without its keys at ``places``, which are as ``Applied`` has them."""
    made = {key: _copied(value) for key, value in document.items()}
    for at in places:
        *above, key = at.split(".")
        table: Any = made
        for step in above:
            name, _, index = step.partition("[")
            if not index:
                table[name] = dict(table[name])
            table = table[name][int(index.rstrip("]"))] if index else table[name]
        del table[key]
    return made


def _copied(value: Any) -> Any:
    """Return a copy as deep as defaults are put: of a table, or of the tables in an array."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return [dict(item) if isinstance(item, dict) else item for item in value]
    return value


def _places(document: Document, at: str) -> Iterator[tuple[Document, str, str]]:
    """Yield the tables that have the key ``at``, its name there, and its place."""
    head, _, key = at.rpartition(".")
    if head.endswith("[]"):
        tables = document.get(head[:-2], [])
        for index, table in enumerate(tables if isinstance(tables, Sequence) else ()):
            if isinstance(table, dict):
                yield table, key, f"{head[:-2]}[{index}].{key}"
        return
    inner = document
    for name in filter(None, head.split(".")):
        found = inner.get(name, {})
        if not isinstance(found, dict):
            return
        inner[name] = inner = dict(found)
    yield inner, key, at
