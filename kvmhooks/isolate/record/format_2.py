"""The record as it was before every kind of resource had one form, and back.

A record of format 2 stays one until nothing is held any more: supervisors and followers that an
upgrade found running (a92f6b5, b52323f) read no other, and give back their VMs' claims themselves.
So nothing may be on record that format 2 cannot say.
"""

from __future__ import annotations

from kvmhooks.isolate.claims import format_1
from kvmhooks.isolate.kinds.hugepage_pools import HugePagePool
from kvmhooks.isolate.kinds.vf_powers import VfSettings, from_words, to_words
from kvmhooks.isolate.system.process_stat import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_LISTS: Final = {
    "functions": ("driver", "override", "identity", "waits"),
    "vfs": ("wanted", "made", "probe", "identity", "waits"),
    "mdevs": ("parent", "type", "waits"),
}
"""Kinds whose fields were lists, in this order."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a record of format 2 holds, in format 3 but for its claims.

    Raises ``ValueError`` and its kin.
    """
    tables = {
        name: {
            key: dict(zip(fields, values, strict=True))
            for key, values in document.get(name, {}).items()
        }
        for name, fields in _LISTS.items()
    }
    tables["hugepages"] = _with_shares(document)
    tables["vf_settings"] = {
        key: _settings(**fields).to_json()
        for key, fields in document.get("vf_settings", {}).items()
    }
    held = {
        key: {name: value for name, value in fields.items() if name != "pages"}
        for key, fields in document["held"].items()
    }
    return {
        "held": held,
        "resources": {name: table for name, table in tables.items() if table},
        "reserved": document.get("reserved", ()),
        "records": document["records"],
    }


def downgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a record of format 3 in format 2. Raises ``ValueError`` and its kin."""
    resources = document["resources"]
    pools = {
        key: HugePagePool.from_json(fields)
        for key, fields in resources.get("hugepages", {}).items()
    }
    held = {
        key: fields
        | {
            "claim": format_1.downgraded(fields["claim"]),
            "pages": {at: pool.shares[key] for at, pool in pools.items() if key in pool.shares},
        }
        for key, fields in document["held"].items()
    }
    settings = {
        key: VfSettings.from_json(fields)
        for key, fields in resources.get("vf_settings", {}).items()
    }
    lists = {
        name: {
            key: [values[field] for field in fields]
            for key, values in resources.get(name, {}).items()
        }
        for name, fields in _LISTS.items()
    }
    return (
        {name: document[name] for name in ("version", "boot", "records")}
        | {
            "format": 2,
            "held": held,
            "pools": {at: _pool(pool) for at, pool in pools.items() if pool.is_owed(is_asked=True)},
            "vf_settings": {
                key: {
                    "identity": found.identity,
                    "was": to_words(found.was),
                    "set": to_words(found.ours),
                }
                | ({"waits": found.waits.to_text()} if found.waits else {})
                for key, found in settings.items()
            },
            "reserved": [
                [format_1.downgraded(claim), until] for claim, until in document["reserved"]
            ],
        }
        | lists
    )


def _with_shares(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pools, with the pages of each claim, which stood in the claims' entries."""
    pools = {at: _read_pool(**fields) for at, fields in document["pools"].items()}
    for key, held in document["held"].items():
        for at, count in held["pages"].items():
            pools.setdefault(at, HugePagePool()).shares[str(key)] = int(count)
    for at in pools:
        HugePagePool.check_key(at)
    return {at: pool.to_json() for at, pool in pools.items() if not pool.is_over}


def _read_pool(owed: int, before: int | None = None, want: int | None = None) -> HugePagePool:
    if (before is None) is not (want is None):
        raise ValueError("found half of a change, expected before and want")
    return HugePagePool(
        int(owed),
        before=None if before is None else int(before),
        want=None if want is None else int(want),
    )


def _pool(pool: HugePagePool) -> dict[str, int]:
    change = {} if pool.want is None else {"before": pool.before or 0, "want": pool.want}
    return change | {"owed": pool.owed}


def _settings(
    identity: str,
    was: str,
    set: str,  # noqa: A002 -- its name there
    waits: str = "",
) -> VfSettings:
    """Read a function's settings; old versions keep ``waits``, a text as the others, unread."""
    return VfSettings(str(identity), from_words(was), from_words(set), Process.from_text(waits))
