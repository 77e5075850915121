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
    """Return the contract of ``kvmhooks devices --json``."""
    return [
        {
            "address": str(judgement.device.address),
            "class": judgement.device.class_,
            "vendor": judgement.device.vendor,
            "device": judgement.device.device,
            "driver": judgement.device.driver,
            "node": judgement.device.node,
            "iommu_group": judgement.device.iommu_group,
            "goes_with": [str(address) for address in judgement.goes_with],
            "physfn": None if judgement.device.physfn is None else str(judgement.device.physfn),
            "bars": list(judgement.device.bars),
            "mdev_types": {kind.name: kind.available for kind in judgement.device.mdev_types},
            "reset_methods": judgement.device.reset_methods,
            "reset": {
                "kind": judgement.reset.kind,
                "shared_with": [str(address) for address in judgement.reset.shared_with],
            },
            "net": list(judgement.device.net),
            "block": list(judgement.device.block),
            "verdict": judgement.verdict,
            "objections": [
                {
                    "reason": objection.reason,
                    "what": objection.what,
                    "evidence": objection.evidence,
                    "may_be_allowed": objection.may_be_allowed,
                }
                for objection in judgement.objections
            ],
            "notes": list(judgement.notes),
        }
        for judgement in judged
    ]
