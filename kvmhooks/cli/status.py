"""``kvmhooks status``: what VMs hold of this host, and the host beside that as it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from kvmhooks.cli.isolation import key_of, registry_of
from kvmhooks.cli.roots import require_host, used
from kvmhooks.cli.status_text import ENDED, MISSING, told
from kvmhooks.errors import IsolationError, words_of
from kvmhooks.exits import DRIFT
from kvmhooks.isolate.kinds.bound_functions import Origin
from kvmhooks.isolate.kinds.hugepage_pools import HugePagePool
from kvmhooks.isolate.kinds.mdevs import Mediated
from kvmhooks.isolate.kinds.vf_pools import VfPool
from kvmhooks.isolate.kinds.vf_powers import VfSettings
from kvmhooks.isolate.record import comparison
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmhooks.isolate.kinds.kind import Acquisition
    from kvmhooks.isolate.record.comparison import Comparison
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

STARTING: Final = "starting"

_RESOURCES: Final = (
    *("huge_pages", "devices", "virtual_functions", "mediated_devices", "function_settings"),
)
"""The parts of the document that have resources."""

_LOOKS: Final = 10
_PAUSE: Final = 0.1
"""Seconds between two looks for a follower, or for the end of a call."""


def main(verb: str, argv: Sequence[str]) -> int:
    """Tell what is held; 5 when somebody else has changed a part of it."""
    arguments = parser_of(verb).parse_args(argv)
    registry = registry_of(arguments.root)
    with used(arguments.root):
        require_host(arguments.root)
        state, found = compared(registry)
        document = held_things(registry, state, found) | {"owed": owed(registry, state)}
        if arguments.name is not None:
            held = state.held[key_of(state, arguments.name)]
            document, found = of_vm(held, document, found, registry.system)
    print(json.dumps(document, indent=2) if arguments.json else told(document, found))
    return DRIFT if any(row.state == comparison.DRIFTED for row in found) else 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a VM's name or UUID: tell what it asks for alone"
    )
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def compared(registry: Registry) -> tuple[State, list[Comparison]]:
    """Return the record, and the host beside it, once no call is in the midst of its work.

    One that does not come to an end in time is told as it is.
    """
    from kvmhooks.isolate.registry.drift import UNDER_WAY, compare

    for _ in range(_LOOKS):
        state = settled(registry)
        found = compare(registry, state)
        if all(row.why != UNDER_WAY for row in found):
            break
        registry.system.sleep(_PAUSE)
    return state, found


def settled(registry: Registry) -> State:
    """Return the record, once no VM's follower is between its VM's start and its own.

    A hook starts it after it has recorded that the VM runs; one that is missing is waited for, and
    no longer than that takes.
    """
    for _ in range(_LOOKS):
        state = registry.look()
        ended = registry.ended(state)
        live = (held for key, held in state.held.items() if key not in ended)
        if all(_follower_of(held, registry.system) != MISSING for held in live):
            break
        registry.system.sleep(_PAUSE)
    return state


def held_things(
    registry: Registry, state: State, found: Sequence[Comparison] | None = None
) -> dict[str, Any]:
    """Return the claims, and every knob and resource of theirs beside the host."""
    if found is None:
        from kvmhooks.isolate.registry.drift import compare

        found = compare(registry, state)
    system = registry.system
    ended = registry.ended(state)
    live = {key: held for key, held in state.held.items() if key not in ended}
    beside = {(row.kind, row.key): row for row in found}
    devices = _devices(state, system)
    return {
        "claims": [_claim(key, state, system, is_live=key in live) for key in state.held],
        "knobs": [_knob(row, state) for row in found if not row.kind],
        "huge_pages": _with(beside, HugePagePool, _pools(state)),
        "huge_pages_owed": {
            key: pool.owed
            for key, pool in state.acquired(HugePagePool).items()
            if pool.is_owed(is_asked=True)
        },
        "devices": _with(beside, Origin, devices),
        "virtual_functions": _with(beside, VfPool, _virtual_functions(state)),
        "mediated_devices": _with(beside, Mediated, _mediated(state)),
        "function_settings": _with(beside, VfSettings, _function_settings(state)),
        "groups": _groups(state, system),
        "units": _units(live.values(), system),
    }


def of_vm(
    held: Held, document: dict[str, Any], found: Sequence[Comparison], system: System
) -> tuple[dict[str, Any], list[Comparison]]:
    """Return the part of it all that one VM asks for, and what cannot be told whose it is."""
    name = held.claim.name
    rows = [row for row in found if row.by is None or name in row.by]
    settings = {row.key for row in rows if not row.kind}
    parts: dict[str, Any] = {
        part: [row for row in document[part] if name in _listed(row["by"])] for part in _RESOURCES
    }
    parts["claims"] = [
        claim
        for claim in document["claims"]
        if (claim["driver"], claim["uuid"]) == (held.claim.driver, held.claim.uuid)
    ]
    parts["knobs"] = [knob for knob in document["knobs"] if knob["knob"] in settings]
    parts["groups"] = [
        group
        for group in document["groups"]
        if not CpuSet.parse(group["cpus"]).isdisjoint(held.claim.exclusive)
    ]
    parts["units"] = _units([held], system)
    return document | parts | {"huge_pages_owed": {}, "owed": None}, rows


def _listed(by: list[str] | str | None) -> list[str]:
    return [by] if isinstance(by, str) else by or []


def _claim(key: str, state: State, system: System, *, is_live: bool) -> dict[str, Any]:
    """Return a claim, and how its VM and its follower are."""
    from kvmhooks.isolate.vm.affinity import stale

    held = state.held[key]
    files = dict(held.claim.origins)
    return {
        "name": held.claim.name,
        "uuid": held.claim.uuid,
        "driver": held.claim.driver,
        "state": held.state if is_live else ENDED,
        "exclusive": str(held.claim.exclusive),
        "settings": {
            name: {"value": value, "from": files.get(name)} for name, value in held.claim.settings
        },
        "pid": held.holder.pid,
        "huge_pages": pages_of(key, state),
        "fallback": held.fallback,
        "follower": _follower_of(held, system) if is_live else None,
        "stale": stale(system, held) if is_live else "",
        "warnings": [*_warnings(held, system), *_left_out(held, state, system)] if is_live else [],
    }


def _knob(row: Comparison, state: State) -> dict[str, Any]:
    """Return a setting; what stands on record of it is ``original``, ``held`` and ``settled``."""
    record = state.records.get(row.key)
    held = None if record is None else record.ours if record.intent is None else record.intent
    return {
        "knob": row.key,
        "original": row.was,
        "held": held,
        "settled": record is None or record.intent is None,
        **row.to_json(),
    }


def _with(
    beside: Mapping[tuple[str, str], Comparison],
    kind: type[Acquisition],
    rows: Iterable[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return resources, each with how it is; its key is its first value."""
    found = []
    for row in rows:
        here = beside.get((kind.KIND, next(iter(row.values()))))
        found.append(row | {"host": None if here is None else here.to_json()})
    return found


def _pools(state: State) -> list[dict[str, Any]]:
    """Return the pools of huge pages with pages of ours, and for whom."""
    names = {key: held.claim.name for key, held in state.held.items()}
    return [
        {
            "pool": key,
            "added": sum(pool.shares.values()),
            "by": [names[key] for key in pool.shares if key in names],
        }
        for key, pool in state.acquired(HugePagePool).items()
    ]


def owed(registry: Registry, state: State) -> int | str | None:
    """Return the process that waits for what is owed, ``missing``, or None where nothing is."""
    waiter = registry.waiter()
    if waiter is not None:
        return waiter.pid
    return "missing" if state.is_owed else None


def _groups(state: State, system: System) -> list[dict[str, Any]]:
    """Return the groups beside VMs that may use their CPUs, and what of them does."""
    from kvmhooks.isolate.vm import neighbours

    return [
        {
            "group": f"/{group.path}",
            "cpus": str(group.cpus),
            "manager": "another" if neighbours.is_raw(system, group.path) else "systemd",
            "processes": [{"pid": pid, "name": name} for pid, name in group.processes],
        }
        for group in neighbours.intruders(system, state.held.values())
    ]


def _units(held: Iterable[Held], system: System) -> list[str]:
    """Return what VMs keep units of systemd from, a sentence each."""
    from kvmhooks.isolate.registry.unit_affinities import warnings

    return warnings(system, [entry.claim for entry in held], ())


def _virtual_functions(state: State) -> list[dict[str, Any]]:
    """Return the pools that we made, and for whom."""
    return [
        {"address": pf, "count": pool.made or pool.wanted, "by": _owners(state, VfPool.KIND, pf)}
        for pf, pool in state.acquired(VfPool).items()
    ]


def _mediated(state: State) -> list[dict[str, Any]]:
    """Return the mediated devices that we made, and for whom."""
    return [
        {"uuid": uuid, "parent": made.parent, "type": made.type, "by": _owner(state, made, uuid)}
        for uuid, made in state.acquired(Mediated).items()
    ]


def _function_settings(state: State) -> list[dict[str, Any]]:
    """Return the virtual functions that were set for VMs, what each had, and for whom."""
    return [
        {"function": key, "was": found.was, "set": found.ours, "by": _owner(state, found, key)}
        for key, found in state.acquired(VfSettings).items()
    ]


def _devices(state: State, system: System) -> list[dict[str, Any]]:
    """Return the PCI functions that were bound to vfio-pci, what they had, and whose they are."""
    return [
        {
            "address": address,
            "driver": origin.driver,
            "override": origin.override,
            "by": _owner(state, origin, address),
            "waits_for": origin.waits.pid
            if origin.waits is not None and origin.waits.is_alive(system)
            else None,
        }
        for address, origin in state.acquired(Origin).items()
    ]


def pages_of(key: str, state: State) -> dict[str, int]:
    """Return the huge pages that were added for a claim, by their pools."""
    pools = state.acquired(HugePagePool)
    return {at: pool.shares[key] for at, pool in pools.items() if key in pool.shares}


def _owner(state: State, found: Acquisition, key: str) -> str | None:
    """Return the VM that a resource was acquired for, while it asks for it."""
    return next(reversed(_owners(state, found.KIND, key)), None)


def _owners(state: State, kind: str, key: str) -> list[str]:
    """Return the VMs that ask for a resource."""
    return [held.claim.name for held in state.held.values() if key in held.claim.asks_of(kind)]


def _warnings(held: Held, system: System) -> list[str]:
    """Return all that is not as it should be with a VM that lives."""
    from kvmhooks.isolate.vm.strays import told

    return [*held.warnings, *told(system, held), *_moot(held, system)]


def _left_out(held: Held, state: State, system: System) -> list[str]:
    """Return what a VM asks for and what does nothing, for it or on this host."""
    from kvmhooks.isolate.registry.unserved import told as told_with

    others = sorted(state.held.values(), key=lambda other: other.since)
    before = [other.claim for other in others if other.since < held.since]
    return told_with(system, held.claim, before, _hollow(held, system))


def _hollow(held: Held, system: System) -> list[str]:
    """Return what a VM of libvirt's says and what does nothing, by libvirt's record of it."""
    from kvmhooks.isolate.claims.domain_xml import without_effect
    from kvmhooks.isolate.vm.cgroups import LIBVIRT, libvirts_file

    path = libvirts_file(held.claim, ".xml")
    if held.claim.driver != LIBVIRT or not path:
        return []
    try:
        record = system.read(path).encode("utf-8", "surrogateescape")
        return without_effect(record, system)
    except FileNotFoundError:  # it has not started yet
        return []
    except (IsolationError, OSError) as error:
        return [f"/{path}: {words_of(error)}"]


def _moot(held: Held, system: System) -> list[str]:
    """Return a note if the place where its devices' interrupts are taken makes no difference."""
    from kvmhooks.isolate.knobs.vfio_irqs import posted

    why = posted(system) if held.claim.devices else ""
    return [f"placing VFIO's interrupts is moot: {why}"] if why else []


def _follower_of(held: Held, system: System) -> int | str | None:
    """Return its process, ``starting``, ``missing``, or None where a claim needs none."""
    from kvmhooks.isolate.hook.follower_unit import is_starting

    if not held.needs_follower:
        return None
    if held.follower is not None and held.follower.is_alive(system):
        return held.follower.pid
    return STARTING if is_starting(system, held.claim.key) else MISSING
