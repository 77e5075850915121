"""``kvmhooks status|reconcile|undo``: what is held of this host, and giving it back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from kvmhooks.cli.roots import require_host, used
from kvmhooks.errors import InputError, RestoreError, ValueFormatError
from kvmhooks.isolate.kinds.bound_functions import Origin
from kvmhooks.isolate.kinds.hugepage_pools import HugePagePool
from kvmhooks.isolate.kinds.mdevs import Mediated
from kvmhooks.isolate.kinds.vf_pools import VfPool
from kvmhooks.isolate.kinds.vf_powers import VfSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from kvmhooks.isolate.kinds.kind import Acquisition
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

NAMED: Final = 5
"""So many processes of a group are named."""

_LEFT: Final = "run `kvmhooks reconcile`"

ENDED: Final = "ended"
"""The state of a claim whose VM is gone, until somebody gives it back."""

STARTING: Final = "starting"
MISSING: Final = "missing"

_LOOKS: Final = 10
_PAUSE: Final = 0.1
"""Seconds between two looks for a follower."""


def main(verb: str, argv: Sequence[str]) -> int:
    """Carry out one of the three verbs; 4 when the host is not restored completely."""
    arguments = parser_of(verb).parse_args(argv)
    from kvmhooks.isolate.hook.entry import retry

    registry = registry_of(arguments.root)
    with used(arguments.root):
        require_host(arguments.root)
        if verb == "status":
            state = settled(registry)
            document = held_things(state, registry.system, registry.ended(state)) | {
                "owed": owed(registry, state)
            }
        else:
            report = _carry_out(verb, registry, arguments)
    if verb == "status":
        print(json.dumps(document, indent=2) if arguments.json else told(document), end="\n")
        return 0
    print(json.dumps(_results(report), indent=2) if arguments.json else str(report))
    with used(arguments.root):
        if registry.owes(report):
            retry(arguments.root)
        check(report, registry)
    return 0


def _carry_out(verb: str, registry: Registry, arguments: argparse.Namespace) -> Report:
    """Do what ``reconcile`` or ``undo`` asks for."""
    if verb == "reconcile":
        return registry.reconcile()
    return registry.undo(None if arguments.all else _key_of(registry, arguments.name))


def registry_of(root: str) -> Registry:
    """Return the registry of a host; this kvmhooks does what the hook's own modules cannot do."""
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

    helper = [sys.executable, "-I", "-m", "kvmhooks.cli.main"]
    return Registry(System(root), Store(root), helper=helper)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    if verb == "undo":
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("name", metavar="NAME", nargs="?", help="a VM's name or UUID")
        which.add_argument("--all", action="store_true", help="every VM")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


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


def held_things(state: State, system: System, ended: Collection[str] = ()) -> dict[str, Any]:
    """Return the claims, and every knob that is not at its original, with who holds it.

    ``ended`` are the keys of claims whose VMs are gone.
    """
    from kvmhooks.isolate.vm.affinity import stale

    live = {key: held for key, held in state.held.items() if key not in ended}
    units = _units(live.values(), system)
    knobs = [
        {
            "knob": key,
            "original": record.original,
            "held": record.ours if record.intent is None else record.intent,
            "settled": record.intent is None,
            "by": _holders(state, record.original),
        }
        for key, record in state.records.items()
        if record.ours is not None or record.intent is not None
    ]
    claims = [
        {
            "name": held.claim.name,
            "uuid": held.claim.uuid,
            "driver": held.claim.driver,
            "state": held.state if key in live else ENDED,
            "exclusive": str(held.claim.exclusive),
            "pid": held.holder.pid,
            "huge_pages": pages_of(key, state),
            "fallback": held.fallback,
            "follower": _follower_of(held, system) if key in live else None,
            "stale": stale(system, held) if key in live else "",
            "warnings": _warnings(held, system) if key in live else [],
        }
        for key, held in state.held.items()
    ]
    owed = {
        key: pool.owed
        for key, pool in state.acquired(HugePagePool).items()
        if pool.is_owed(is_asked=True)
    }
    devices = _devices(state, system)
    return {
        "claims": claims,
        "knobs": knobs,
        "huge_pages_owed": owed,
        "devices": devices,
        "virtual_functions": _virtual_functions(state),
        "mediated_devices": _mediated(state),
        "function_settings": _function_settings(state),
        "groups": _groups(state, system),
        "units": units,
    }


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


def _holders(state: State, original: str) -> list[str]:
    """Return the VMs whose CPUs were taken out of a mask; all of them for what is no mask."""
    from kvmhooks.values import CpuSet

    try:
        cpus = CpuSet.parse(original)
    except ValueFormatError:
        cpus = CpuSet()
    return [
        held.claim.name
        for held in state.held.values()
        if not cpus or not cpus.isdisjoint(held.claim.exclusive)
    ]


def told(document: dict[str, Any]) -> str:
    """Return the same for a person."""
    if not any(document.values()):
        return "nothing is held"
    lines = []
    for claim in document["claims"]:
        lines.append(_told_of(claim))
        if claim["stale"]:
            lines.append(f"  stale: {claim['stale']}: run `kvmhooks reconcile`")
        lines += [f"  {warning}" for warning in claim["warnings"]]
    if document.get("owed"):
        lines.append(
            "owed: nobody tries again: run `kvmhooks reconcile`"
            if document["owed"] == "missing"
            else f"owed: process {document['owed']} gives it back as soon as that can be done"
        )
    lines += document["units"]
    for knob in document["knobs"]:
        by = ", ".join(knob["by"]) or "nobody any more"
        lines.append(
            f"  {knob['knob']}: {knob['original'] or 'all'} -> {knob['held'] or 'all'} ({by})"
        )
    for key, count in document["huge_pages_owed"].items():
        lines.append(f"  huge pages {key}: {count} to give back")
    lines += _told_of_devices(document)
    lines += map(_told_of_group, document["groups"])
    return "\n".join(lines)


def _told_of_devices(document: dict[str, Any]) -> Iterator[str]:
    """Yield one line of each device that was bound, made or set."""
    for device in document["devices"]:
        waits = device["waits_for"]
        by = device["by"] or (f"given back when process {waits} ends" if waits else _LEFT)
        driver = device["driver"] or "no driver"
        yield f"  device {device['address']}: {driver} -> vfio-pci ({by})"
    for pool in document["virtual_functions"]:
        by = ", ".join(pool["by"]) or "nobody any more: removed when none is in use"
        yield f"  virtual functions of {pool['address']}: {pool['count']} ({by})"
    for mediated in document["mediated_devices"]:
        by = mediated["by"] or _LEFT
        parent = mediated["parent"]
        yield f"  mediated device {mediated['uuid']}: {mediated['type']} of {parent} ({by})"
    for found in document["function_settings"]:
        by = found["by"] or _LEFT
        words = ", ".join(f"{name} {text}" for name, text in found["set"].items())
        yield f"  virtual function {found['function']}: {words} ({by})"


def _told_of_group(group: dict[str, Any]) -> str:
    """Return one line; a group may have thousands of processes."""
    processes = [
        f"{process['name']} {process['pid']}".replace("\n", "\\u000a")  # as it may name itself
        for process in group["processes"]
    ]
    more = len(processes) - NAMED
    told = ", ".join(processes[:NAMED]) or "nothing"
    told += f" and {more} more" if more > 0 else ""
    why = "; it is another manager's, see host.raw_groups" if group["manager"] == "another" else ""
    return f"  group {group['group']} may run on {group['cpus']}: {told}{why}"


def _told_of(claim: dict[str, Any]) -> str:
    """Return one line of a claim."""
    cpus = claim["exclusive"] or "no CPUs alone"
    line = f"{claim['name']}: {cpus}, {claim['state']}, process {claim['pid']}"
    if claim["state"] == ENDED:
        return f"{line} no longer runs: run `kvmhooks reconcile`"
    return line + (f", follower {claim['follower']}" if claim["follower"] else "")


def _key_of(registry: Registry, name: str) -> str:
    """Return the key of the claim with this name or UUID. Raises ``InputError`` without one."""
    held = registry.look().held
    found = [key for key, entry in held.items() if name in {entry.claim.name, entry.claim.uuid}]
    if len(found) != 1:
        names = ", ".join(entry.claim.name for entry in held.values()) or "none"
        raise InputError(f"found {len(found)} claims of {name!r}, expected one of: {names}")
    return found[0]


def _results(report: Report) -> dict[str, Any]:
    return {
        "results": [result.to_json() for result in report.results],
        "untouched": report.untouched,
    }


def check(report: Report, registry: Registry) -> None:
    """Raise ``RestoreError`` when something is left that no claim holds."""
    left = registry.left_over(report)
    if left:
        message = "; ".join(f"{item.key}: {item.why}" for item in left)
        raise RestoreError(f"not restored: {message}")
