"""A plan as the JSON that ``kvm-launch --print plan`` and ``kvmhooks plan --json`` print."""

from __future__ import annotations

from typing import Any

import attrs

from kvmhooks.placement.model import Plan


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON types; CPU sets are list strings."""
    return {
        "name": plan.name,
        "uuid": plan.uuid,
        "accel": plan.accel,
        "cpu": {
            "model": plan.cpu.model,
            "vendor": plan.cpu.vendor,
            "features": list(plan.cpu.features),
        },
        "vcpus": [{"vcpu": pin.vcpu, "cpus": str(pin.cpus)} for pin in plan.vcpus],
        "emulator": str(plan.emulator),
        "iothreads": [{"id": pin.id, "cpus": str(pin.cpus)} for pin in plan.iothreads],
        "cells": [
            {
                "id": cell.id,
                "node": cell.node,
                "vcpus": str(cell.vcpus),
                "memory_kib": cell.memory_kib,
                "page_kib": cell.page_kib,
            }
            for cell in plan.cells
        ],
        "memory_mode": plan.memory_mode,
        "macs": list(plan.macs),
        "exclusive": str(plan.exclusive),
        "housekeeping": str(plan.housekeeping),
        "topology": attrs.asdict(plan.topology),
        "score": dict(plan.score),
        "why": list(plan.why),
        "warnings": list(plan.warnings),
    }
