"""The VMs of kvm-launch that run, by the records in their run directories.

A record is written by the VM's supervisor, maybe of another version (``kvm_launch.tell.status``).
Only a record of our own user is read, not more than a page of it, and past no link.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from kvmhooks import files
from kvmhooks.errors import HostError, KvmhooksError
from kvmhooks.inventory.usage import Holding, from_json, second_identity_of
from kvmhooks.isolate.system.process_stat import start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.qemu.run_dir import is_free, unreadable
from kvmhooks.values import CpuSet

NAME: Final = "status.json"
MOST_BYTES: Final = 1 << 16

_UNNAMED: Final = uuid.UUID(int=0)
"""The name space of VMs whose record has no UUID: they are told apart by their names."""

_NOT_YET: Final = ("planned", "claimed", "starting")
"""The states in which QEMU has not mapped its memory yet."""


def launched(
    run_dir: Path | None, users: Path | None, system: System, own: Collection[str]
) -> tuple[list[Holding], list[str]]:
    """Return what VMs hold that run below ``run_dir``, and below the user's own base in any case.

    ``own`` are the UUIDs of VMs that are planned: one of that UUID below the other base is another
    VM. The second is what is wrong with records. Raises ``HostError`` as ``recorded``.
    """
    found: list[Holding] = []
    problems: list[str] = []
    base = users if run_dir is None else run_dir.absolute()
    for each in dict.fromkeys(filter(None, (base, users))):
        held, wrong = recorded(each, system)
        if each != base:
            held = [
                evolve(vm, uuid=str(uuid.uuid5(_UNNAMED, f"{each}/{vm.uuid}")))
                if {vm.uuid} & {*own, *map(second_identity_of, own)}
                else vm
                for vm in held
            ]
        found += held
        problems += wrong
    return found, problems


def recorded(base: Path, system: System) -> tuple[list[Holding], list[str]]:
    """Return what the VMs below ``base`` hold that run, and what is wrong with other records.

    Raises ``HostError`` for a directory that cannot be read.
    """
    found: list[Holding] = []
    problems: list[str] = []
    for name in _names(base):
        path = base / name / NAME
        document = _read(path)
        if document is None or document.get("name") != name:
            if _is_held(base, name) and path.exists():
                problems.append(f"{unreadable(path)}; planned as if it did not run")
            continue
        if not _is_followed(document, system):
            continue
        try:
            held = _holding_of(document)
            found += [held] if held.uuid else []
        except (KvmhooksError, LookupError, TypeError, ValueError) as error:
            problems.append(f"{path}: {error}; planned as if the VM did not run")
    return found, problems


def _names(base: Path) -> Iterator[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(base))
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"{base}: {error.strerror}: expected a directory of this user's own") from (
            error
        )
    yield from (name for name in names if not name.startswith("."))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(files.read(path, MOST_BYTES, owner=os.geteuid(), follows=False))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_held(base: Path, name: str) -> bool:
    try:
        return not is_free(base, name)
    except OSError:
        return False


def _is_followed(document: dict[str, Any], system: System) -> bool:
    """Return whether the supervisor lives that has written a record."""
    pid, start = document.get("supervisor"), document.get("supervisor_start")
    return type(pid) is int and pid > 0 and start_time(system, pid) == start


def _holding_of(document: dict[str, Any]) -> Holding:
    """Return what a VM holds; of an older supervisor's its CPUs alone. Raises for nonsense.

    One that is not planned yet has no UUID and no CPUs: its holding has none either.
    """
    identity, name = document.get("uuid", ""), document["name"]
    held = document.get("holding")
    own = CpuSet.parse(str(document.get("dedicated", "")))
    alone = CpuSet.parse(str(document.get("exclusive", "")))
    if not identity and own | alone:
        identity = str(uuid.uuid5(_UNNAMED, name))
    if identity and (not isinstance(identity, str) or str(uuid.UUID(identity)) != identity):
        raise ValueError(f"uuid: found {identity!r:.60}, expected a lower-case UUID")
    if held:
        known = evolve(from_json(held), uuid=identity)
    else:
        known = Holding(name=name, uuid=identity, exclusive=alone, dedicated=own - alone)
    if document.get("twin") is True:
        known = evolve(known, uuid=second_identity_of(identity))
    is_mapped = bool(document.get("qemu")) and document.get("state") not in _NOT_YET
    return evolve(known, hugepages=(), has_key=bool(known.key)) if is_mapped else known
