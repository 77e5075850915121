"""``kvmhooks status|reconcile|undo``: what is held of this host, and giving it back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvmhooks.cli.roots import require_host, used
from kvmhooks.errors import InputError, RestoreError, ValueFormatError

if TYPE_CHECKING:
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.keeper import Keeper
    from kvmhooks.isolate.report import Report
    from kvmhooks.isolate.state import Held, State


def main(verb: str, argv: Sequence[str]) -> int:
    """Carry out one of the three verbs; 4 when the host is not restored completely."""
    arguments = parser_of(verb).parse_args(argv)
    keeper = keeper_of(arguments.root)
    with used(arguments.root):
        require_host(arguments.root)
        if verb == "status":
            said = held_things(keeper.look(), keeper.door)
        else:
            report = _carry_out(verb, keeper, arguments)
    if verb == "status":
        print(json.dumps(said, indent=2) if arguments.json else told(said), end="\n")
        return 0
    print(json.dumps(_results(report), indent=2) if arguments.json else str(report))
    with used(arguments.root):
        check(report, keeper)
    return 0


def _carry_out(verb: str, keeper: Keeper, arguments: argparse.Namespace) -> Report:
    """Do what ``reconcile`` or ``undo`` asks for."""
    if verb == "reconcile":
        return keeper.reconcile()
    return keeper.undo(None if arguments.all else _key_of(keeper, arguments.name))


def keeper_of(root: str) -> Keeper:
    """The keeper of a host, which has this kvmhooks for what the hook's own modules cannot do."""
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.keeper import Keeper
    from kvmhooks.isolate.store import Store

    helper = [sys.executable, "-I", "-m", "kvmhooks.cli.main"]
    return Keeper(Door(root), Store(root), helper=helper)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    if verb == "undo":
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("name", metavar="NAME", nargs="?", help="a VM's name or UUID")
        which.add_argument("--all", action="store_true", help="every VM")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def held_things(state: State, door: Door) -> dict[str, Any]:
    """The live claims, and every knob that is not at its original, with who holds it."""
    from kvmhooks.isolate.pins import stale

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
            "name": one.claim.name,
            "uuid": one.claim.uuid,
            "driver": one.claim.driver,
            "state": one.state,
            "exclusive": str(one.claim.exclusive),
            "pid": one.holder.pid,
            "huge_pages": one.pages,
            "fallback": one.fallback,
            "follower": _follower_of(one, door),
            "stale": stale(door, one),
            "warnings": [*one.warnings, *_moot(one, door)],
        }
        for one in state.held.values()
    ]
    owed = {key: pool["owed"] for key, pool in state.pools.items()}
    devices = _devices(state, door)
    return {
        "claims": claims,
        "knobs": knobs,
        "huge_pages_owed": owed,
        "devices": devices,
        "virtual_functions": _virtual_functions(state),
        "mediated_devices": _mediated(state),
    }


def _virtual_functions(state: State) -> list[dict[str, Any]]:
    """The pools that we made, and for whom."""
    claims = [one.claim for one in state.held.values()]
    return [
        {
            "address": pf,
            "count": pool.made or pool.wanted,
            "by": [claim.name for claim in claims if pf in dict(claim.pools)],
        }
        for pf, pool in state.vfs.items()
    ]


def _mediated(state: State) -> list[dict[str, Any]]:
    """The mediated devices that we made, and for whom."""
    owners = {uuid: one.claim.name for one in state.held.values() for uuid, _, _ in one.claim.mdevs}
    return [
        {"uuid": uuid, "parent": made.parent, "type": made.kind, "by": owners.get(uuid)}
        for uuid, made in state.mdevs.items()
    ]


def _devices(state: State, door: Door) -> list[dict[str, Any]]:
    """The PCI functions that were bound to vfio-pci, what they had, and whose they are."""
    owners = {at: one.claim.name for one in state.held.values() for at in one.claim.bound}
    return [
        {
            "address": address,
            "driver": origin.driver,
            "override": origin.override,
            "by": owners.get(address),
            "waits_for": origin.waits.pid
            if origin.waits is not None and origin.waits.is_alive(door)
            else None,
        }
        for address, origin in state.functions.items()
    ]


def _moot(one: Held, door: Door) -> list[str]:
    """That where its devices' interrupts are taken makes no difference, if so."""
    from kvmhooks.isolate.knobs.vectors import posted

    why = posted(door) if one.claim.devices else ""
    return [f"placing VFIO's interrupts is moot: {why}"] if why else []


def _follower_of(one: Held, door: Door) -> int | str | None:
    """Its process, ``missing``, or None where a claim needs none."""
    from kvmhooks.isolate.service import needs_follower

    if not needs_follower(one):
        return None
    is_there = one.follower is not None and one.follower.is_alive(door)
    return one.follower.pid if one.follower is not None and is_there else "missing"


def _holders(state: State, original: str) -> list[str]:
    """The VMs whose CPUs were taken out of a mask; all of them for what is no mask."""
    from kvmhooks.values import CpuSet

    try:
        cpus = CpuSet.parse(original)
    except ValueFormatError:
        cpus = CpuSet()
    return [
        one.claim.name
        for one in state.held.values()
        if not cpus or not cpus.isdisjoint(one.claim.exclusive)
    ]


def told(said: dict[str, Any]) -> str:
    """The same for a person."""
    if not any(said.values()):
        return "nothing is held"
    lines = []
    for claim in said["claims"]:
        cpus = claim["exclusive"] or "no CPUs alone"
        lines.append(
            f"{claim['name']}: {cpus}, {claim['state']}, process {claim['pid']}"
            + (f", follower {claim['follower']}" if claim["follower"] else "")
        )
        if claim["stale"]:
            lines.append(f"  stale: {claim['stale']}: run `kvmhooks reconcile`")
        lines += [f"  {warning}" for warning in claim["warnings"]]
    for knob in said["knobs"]:
        by = ", ".join(knob["by"]) or "nobody any more: run `kvmhooks reconcile`"
        lines.append(
            f"  {knob['knob']}: {knob['original'] or 'all'} -> {knob['held'] or 'all'} ({by})"
        )
    for key, count in said["huge_pages_owed"].items():
        lines.append(f"  huge pages {key}: {count} to give back")
    for device in said["devices"]:
        waits = device["waits_for"]
        by = device["by"] or (
            f"given back when process {waits} ends" if waits else "run `kvmhooks reconcile`"
        )
        driver = device["driver"] or "no driver"
        lines.append(f"  device {device['address']}: {driver} -> vfio-pci ({by})")
    for pool in said["virtual_functions"]:
        by = ", ".join(pool["by"]) or "nobody any more: removed when none is in use"
        lines.append(f"  virtual functions of {pool['address']}: {pool['count']} ({by})")
    return "\n".join(lines)


def _key_of(keeper: Keeper, name: str) -> str:
    """The key of the claim with this name or UUID. Raises ``InputError`` without one."""
    held = keeper.look().held
    found = [key for key, one in held.items() if name in {one.claim.name, one.claim.uuid}]
    if len(found) != 1:
        names = ", ".join(one.claim.name for one in held.values()) or "none"
        raise InputError(f"found {len(found)} claims of {name!r}, expected one of: {names}")
    return found[0]


def _results(report: Report) -> dict[str, Any]:
    return {
        "results": [result.to_json() for result in report.results],
        "untouched": report.untouched,
    }


def check(report: Report, keeper: Keeper) -> None:
    """Raise ``RestoreError`` when something is left that no claim holds."""
    left = keeper.left_over(report)
    if left:
        said = "; ".join(f"{one.key}: {one.why}" for one in left)
        raise RestoreError(f"not restored: {said}")
