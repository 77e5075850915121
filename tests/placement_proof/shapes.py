"""Twelve VMs of different kinds, each cut to the size of a host."""

from __future__ import annotations

from typing import Any, Final

from kvmhooks.host.model import Host

SHAPES: Final = (
    "small-shared",
    "wide-shared",
    "dedicated",
    "whole-cores",
    "isolated-cores",
    "exclusive-huge",
    "two-cells",
    "uneven-cells",
    "mixed",
    "realtime",
    "with-device",
    "too-large",
)


def document(name: str, host: Host) -> dict[str, Any]:
    """The ``vm.toml`` of one of ``SHAPES`` for a host."""
    cpus = len(host.online)
    half = max(2, cpus // 2 // 2 * 2)
    devices = [device for device in host.pci or () if device.node is not None]
    documents: dict[str, dict[str, Any]] = {
        "small-shared": {"cpu": {"vcpus": 2}, "memory": {"size": "64MiB"}},
        "wide-shared": {
            "cpu": {"vcpus": cpus + 2, "ratio": 4},
            "memory": {"size": "256MiB"},
        },
        "dedicated": {
            "cpu": {"vcpus": 3, "placement": "dedicated"},
            "memory": {"size": "96MiB"},
        },
        "whole-cores": {
            "cpu": {"vcpus": half, "placement": "dedicated", "smt": "require"},
            "memory": {"size": "128MiB"},
        },
        "isolated-cores": {
            "cpu": {"vcpus": 2, "placement": "dedicated", "smt": "isolate"},
            "memory": {"size": "64MiB"},
        },
        "exclusive-huge": {
            "cpu": {"vcpus": 2, "placement": "dedicated"},
            "memory": {"size": "64MiB", "hugepages": "2MiB", "allocate": True},
            "isolation": {"exclusive": True},
        },
        "two-cells": {
            "cpu": {"vcpus": 4, "placement": "dedicated"},
            "memory": {"size": "128MiB", "cells": 2, "hugepages": "auto"},
        },
        "uneven-cells": {
            "cpu": {"vcpus": 4, "placement": "dedicated"},
            "memory": {
                "size": "112MiB",
                "cell": [
                    {"vcpus": "0-2", "size": "32MiB"},
                    {"vcpus": "3", "size": "64MiB"},
                    {"size": "16MiB"},
                ],
            },
        },
        "mixed": {
            "cpu": {"vcpus": 6, "placement": "mixed", "dedicated": "0-1"},
            "memory": {"size": "192MiB"},
        },
        "realtime": {
            "cpu": {
                "vcpus": 2,
                "placement": "dedicated",
                "realtime": True,
                "smt": "isolate",
                "kind": "performance",
            },
            "memory": {"size": "64MiB"},
            "isolation": {"exclusive": True},
        },
        "with-device": {
            "cpu": {"vcpus": 2, "placement": "dedicated"},
            "memory": {"size": "64MiB"},
            "pci": [
                {"address": str(device.address), "locality": "required"} for device in devices[-1:]
            ],
        },
        "too-large": {
            "cpu": {"vcpus": cpus + 1, "placement": "dedicated"},
            "memory": {"size": "64MiB"},
        },
    }
    return documents[name]
