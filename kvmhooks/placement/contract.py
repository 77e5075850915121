"""A plan as the JSON that ``kvm-launch --print plan`` and ``kvmhooks plan --json`` print."""

from __future__ import annotations

from typing import Any

import attrs

from kvmhooks.machine.hardware import Hardware
from kvmhooks.machine.target import version_text
from kvmhooks.placement.claim import asked_of
from kvmhooks.placement.model import Plan


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON types; CPU sets are list strings."""
    return {
        "name": plan.name,
        "uuid": plan.uuid,
        "accel": plan.accel,
        "settings": {
            name: {"value": value, "from": file} for name, (value, file) in asked_of(plan).items()
        },
        "cpu": {
            "model": plan.cpu.model,
            "vendor": plan.cpu.vendor,
            "features": list(plan.cpu.features),
        },
        "dedicated": str(plan.dedicated),
        "vcpus": [{"vcpu": pin.vcpu, "cpus": str(pin.cpus)} for pin in plan.vcpus],
        "emulator": str(plan.emulator),
        "vhost": str(plan.vhost),
        "iothreads": [{"id": pin.id, "cpus": str(pin.cpus)} for pin in plan.iothreads],
        "disk_iothreads": list(plan.disk_iothreads),
        "cells": [
            {
                "id": cell.id,
                "node": cell.node,
                "vcpus": str(cell.vcpus),
                "memory_kib": cell.memory_kib,
                "page_kib": cell.page_kib,
                "allocate": cell.allocate,
            }
            for cell in plan.cells
        ],
        "distances": [list(row) for row in plan.distances],
        "memory_mode": plan.memory_mode,
        "macs": list(plan.macs),
        "hardware": _hardware(plan.hardware),
        "pci": [
            {"address": str(place.address), "node": place.node, "cell": place.cell}
            for place in plan.pci
        ],
        "caches": [
            {
                "cache": share.cache,
                "type": share.type,
                "mask": f"{share.mask:x}",
                "size_kib": share.size_kib,
            }
            for share in plan.caches
        ],
        "bandwidth": [{"cache": cache, "percent": percent} for cache, percent in plan.bandwidth],
        "exclusive": str(plan.exclusive),
        "idle": str(plan.idle),
        "housekeeping": str(plan.housekeeping),
        "topology": attrs.asdict(plan.topology),
        "score": dict(plan.score),
        "optimal": plan.optimal,
        "gap": dict(plan.gap),
        "why": list(plan.why),
        "warnings": list(plan.warnings),
    }


def _hardware(hardware: Hardware) -> dict[str, Any]:
    """Return the decisions on the guest's hardware; the places are PCI addresses in the guest."""
    document = attrs.asdict(
        hardware, filter=lambda field, _: field.name not in {"target", "layout", "required"}
    )
    libvirt = hardware.target.libvirt
    places = hardware.layout.places.items()
    return {
        "target": {
            "qemu": version_text(hardware.target.qemu),
            "libvirt": None if libvirt is None else version_text(libvirt),
        },
        **document,
        "places": {name: f"{at.bus:02x}:{at.slot:02x}.{at.function}" for name, at in places},
    }
