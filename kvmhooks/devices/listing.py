"""The devices of a host and what can be done with them: read, judged, as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from kvmhooks.devices.judgement import Judged, judge
from kvmhooks.devices.reading import read_uses
from kvmhooks.host.read import open_tree, read_tree


def list_devices(root: str | os.PathLike[str] = "/") -> tuple[Judged, ...]:
    """Judge all devices of the host at ``root``: ``/``, a captured tree, or a tar file of one.

    Raises ``HostError``.
    """
    tree = open_tree(root)
    host = read_tree(tree, frozenset({"pci", "iommu", "kernel"}))
    return judge(host, read_uses(tree))


def to_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The contract of ``kvmhooks devices --json``."""
    return [
        {
            "address": str(one.device.address),
            "class": one.device.class_,
            "vendor": one.device.vendor,
            "device": one.device.device,
            "driver": one.device.driver,
            "node": one.device.node,
            "iommu_group": one.device.iommu_group,
            "goes_with": [str(address) for address in one.goes_with],
            "physfn": None if one.device.physfn is None else str(one.device.physfn),
            "bars": list(one.device.bars),
            "mdev_types": {kind.name: kind.available for kind in one.device.mdev_types},
            "reset_methods": one.device.reset_methods,
            "reset": {
                "kind": one.reset.kind,
                "shared_with": [str(address) for address in one.reset.shared_with],
            },
            "net": list(one.device.net),
            "block": list(one.device.block),
            "verdict": one.verdict,
            "objections": [
                {
                    "reason": objection.reason,
                    "what": objection.what,
                    "evidence": objection.evidence,
                    "may_be_allowed": objection.may_be_allowed,
                }
                for objection in one.objections
            ],
            "notes": list(one.notes),
        }
        for one in judged
    ]
