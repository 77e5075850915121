"""The text of ``kvmhooks status`` for people: what is as it should be is short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from kvmhooks.isolate.record import comparison

if TYPE_CHECKING:
    from kvmhooks.isolate.record.comparison import Comparison

NAMED: Final = 5
"""So many processes of a group are named, and things in a state that needs no sentence each."""

_SENTENCES: Final = 20
"""So many things in one state are told in a sentence each."""

ENDED: Final = "ended"
"""The state of a claim whose VM is gone, until somebody gives it back."""

MISSING: Final = "missing"
"""The follower, or the process that waits, where there should be one and is none."""

_LEFT: Final = comparison.RECONCILE

_TOLD_WHOLE: Final = (comparison.DRIFTED, comparison.UNKNOWN, comparison.OWED)
"""The states of which each thing has a sentence."""


def told(document: dict[str, Any], found: Sequence[Comparison]) -> str:
    """Return the same for a person: what is as it should be is short."""
    if not any(document.values()):
        return "nothing is held"
    lines = []
    for claim in document["claims"]:
        lines.append(_told_of(claim))
        if claim["stale"]:
            lines.append(f"  stale: {claim['stale']}: {_LEFT}")
        lines += _told_of_settings(claim["settings"])
        lines += [f"  {warning}" for warning in claim["warnings"]]
    if document.get("owed"):
        lines.append(
            f"owed: nobody tries again: {_LEFT}"
            if document["owed"] == MISSING
            else f"owed: process {document['owed']} gives it back as soon as that can be done"
        )
    lines += document["units"]
    for state in dict.fromkeys((*_TOLD_WHOLE, *comparison.STATES)):
        is_owed = state == comparison.OWED  # devices have lines of their own, below
        rows = [row for row in found if row.state == state and not (is_owed and row.kind)]
        lines += _told_whole(rows) if state in _TOLD_WHOLE else _told_short(state, rows)
    for key, count in document["huge_pages_owed"].items():
        lines.append(f"  huge pages {key}: {count} to give back")
    lines += _told_of_devices(document)
    lines += map(_told_of_group, document["groups"])
    return "\n".join(lines)


def _told_whole(rows: Sequence[Comparison]) -> Iterator[str]:
    """Yield a sentence of each thing, up to a number of them."""
    for row in rows[:_SENTENCES]:
        yield f"  {row.state}: {_sentence(row)}"
    if len(rows) > _SENTENCES:
        yield f"  {rows[0].state}: {len(rows) - _SENTENCES} more, see `kvmhooks status --json`"


def _sentence(row: Comparison) -> str:
    """Return what a thing was, should be and is, for whom, and what puts it right."""
    whose = "for whom cannot be told" if row.by is None else "nobody any more"
    names = " and ".join(row.by) if row.by else whose
    was, should, now = (
        None if value is None else value or row.unset for value in (row.was, row.should, row.now)
    )
    words = [
        "" if was is None else f"was {was}",
        "" if should is None else f"should be {should} ({names})",
        "" if now is None else f"is {now}",
    ]
    found = ", ".join(filter(None, words))
    return ": ".join(filter(None, (row.place, found, row.why, row.remedy)))


def _told_short(state: str, rows: Sequence[Comparison]) -> Iterator[str]:
    """Yield one line of all things in a state, if there are any."""
    if not rows:
        return
    if state == comparison.HELD:
        kinds = Counter(row.kind or row.key.replace(".", "/").partition("/")[0] for row in rows)
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    else:
        named = ", ".join(row.key for row in rows[:NAMED])
        named += f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    yield f"  {len(rows)} {state} ({named}): {comparison.STATES[state]}"


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


def _told_of_settings(settings: dict[str, Any]) -> Iterator[str]:
    """Yield one line of the settings that a file of the administrator's says, by the files."""
    files: dict[str, list[str]] = {}
    for name, setting in settings.items():
        if setting["from"]:
            files.setdefault(setting["from"], []).append(f"{name} {setting['value']}")
    for file, names in sorted(files.items()):
        yield f"  by {file}: {', '.join(names)}"


def _told_of(claim: dict[str, Any]) -> str:
    """Return one line of a claim."""
    cpus = claim["exclusive"] or "no CPUs alone"
    line = f"{claim['name']}: {cpus}, {claim['state']}, process {claim['pid']}"
    if claim["state"] == ENDED:
        return f"{line} no longer runs: run `kvmhooks reconcile`"
    return line + (f", follower {claim['follower']}" if claim["follower"] else "")
