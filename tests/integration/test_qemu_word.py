"""QEMU's own word on a VM, before its first instruction, is what was planned.

Nothing here reads our arguments: what is expected is computed from the plan, and what is found
comes over QMP from every QEMU that is installed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvmhooks.placement import Plan
from kvmhooks.qemu.argv import qemu_argv
from tests.integration.asked import Asked, Emulator, emulators, stopped
from tests.integration.components import QEMU
from tests.integration.matrix import planned, vms

POLICIES = {"strict": "bind", "preferred": "preferred"}
VIRTIO = {"net": 0x1041, "disk": 0x1042, "virtio-serial": 0x1043}
"""Device ids of virtio 1 over PCI: 0x1040 and the type (virtio 1.2, 4.1.2.1)."""


@pytest.mark.parametrize("emulator", emulators(), ids=lambda emulator: emulator.name)
def test_qemu_says_what_was_planned(emulator: Emulator, tmp_path: Path) -> None:
    """CPUs and their places, memory and its nodes, iothreads, disks, PCI ports and devices."""
    if not QEMU.exists():
        pytest.skip("there is no QEMU here: apt install qemu-system-x86")
    make_images(tmp_path)
    count = 0
    for name, text in vms(48):
        plan = planned(text, tmp_path, emulator.program)
        with stopped(emulator, qemu_argv(plan)[1:], tmp_path) as asked:
            assert answer_of(asked, plan) == expected(plan), (name, text)
        count += 1
    print(f"{emulator.name}: {count} VMs are to QEMU what was planned")


def make_images(folder: Path) -> None:
    """The disks of the matrix."""
    for name in ("a.raw", *(f"{at}.raw" for at in range(10))):
        (folder / name).write_bytes(bytes(1 << 20))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "b.qcow2"), "1M"]
    subprocess.run(command, check=True)


def expected(plan: Plan) -> dict[str, Any]:
    """The machine, from the plan alone."""
    shape = plan.topology
    cells = {vcpu: cell.id for cell in plan.cells for vcpu in cell.vcpus}
    disks = plan.spec.disk
    return {
        "cpus": {
            vcpu: {
                "socket-id": vcpu // (shape.threads * shape.cores * shape.dies),
                "die-id": vcpu // (shape.threads * shape.cores) % shape.dies,
                "core-id": vcpu // shape.threads % shape.cores,
                "thread-id": vcpu % shape.threads,
                "node-id": cells[vcpu],
            }
            for vcpu in range(len(plan.vcpus))
        },
        "slots": len(plan.vcpus),
        "memory": {
            f"ram-node{cell.id}": {
                "size": cell.memory_kib << 10,
                "host-nodes": [] if cell.node is None else [cell.node],
                "policy": "default" if cell.node is None else POLICIES[plan.memory_mode],
                "share": False,
            }
            for cell in plan.cells
        },
        "iothreads": sorted(f"iothread{iothread.id}" for iothread in plan.iothreads),
        "disks": {
            f"disk{at}": {
                "file": str(disk.path),
                "format": disk.format,
                "ro": disk.readonly,
                "direct": disk.cache == "none",
                "no-flush": disk.cache == "unsafe",
                "iothread": f"/objects/iothread{path.iothreads[0]}" if path.iothreads else None,
                "queues": disk.queues or len(plan.vcpus),
            }
            for at, (disk, path) in enumerate(zip(disks, plan.hardware.disks, strict=True))
        },
        "ports": {
            f"pci.{port.index}": (port.slot, port.function) for port in plan.hardware.layout.ports
        },
        "devices": {
            device: (f"pci.{place.bus}", VIRTIO[device.rstrip("0123456789")])
            for device, place in plan.hardware.layout.places.items()
        },
        "macs": list(plan.macs),
        "name": plan.name,
        "uuid": plan.uuid,
        "kvm": False,
    }


def answer_of(asked: Asked, plan: Plan) -> dict[str, Any]:
    """The machine, as QEMU tells it."""
    peripheral = "/machine/peripheral"
    levels = ("socket-id", "die-id", "core-id", "thread-id", "node-id")
    return {
        "cpus": {
            cpu["cpu-index"]: {level: cpu["props"].get(level, 0) for level in levels}
            for cpu in asked.ask("query-cpus-fast")
        },
        "slots": sum(slot["vcpus-count"] for slot in asked.ask("query-hotpluggable-cpus")),
        "memory": {
            device["id"]: {key: device[key] for key in ("size", "host-nodes", "policy", "share")}
            for device in asked.ask("query-memdev")
        },
        "iothreads": sorted(each["id"] for each in asked.ask("query-iothreads")),
        "disks": {
            Path(block["qdev"]).parent.name: _disk(asked, block)
            for block in asked.ask("query-block")
        },
        "ports": {
            device["qdev_id"]: (device["slot"], device["function"])
            for bus in asked.ask("query-pci")
            for device in bus["devices"]
            if device["qdev_id"].startswith("pci.")
        },
        "devices": {
            device: (
                Path(asked.get(f"{peripheral}/{device}", "parent_bus")).name,
                _device_id(asked, device),
            )
            for device in plan.hardware.layout.places
        },
        "macs": [asked.get(f"{peripheral}/net{at}", "mac") for at in range(len(plan.spec.net))],
        "name": asked.ask("query-name")["name"],
        "uuid": asked.ask("query-uuid")["UUID"],
        "kvm": asked.ask("query-kvm")["enabled"],
    }


def _disk(asked: Asked, block: dict[str, Any]) -> dict[str, Any]:
    inserted = block["inserted"]
    device = str(Path(block["qdev"]).parent)
    return {
        "file": inserted["file"],
        "format": inserted["drv"],
        "ro": inserted["ro"],
        "direct": inserted["cache"]["direct"],
        "no-flush": inserted["cache"]["no-flush"],
        "iothread": asked.get(device, "iothread") or None,
        "queues": asked.get(device, "num-queues"),
    }


def _device_id(asked: Asked, device: str) -> int:
    """The id that virtio 1 has for the device of this type; the buses have no numbers yet."""
    kinds = {"virtio-net-pci": 0x1041, "virtio-blk-pci": 0x1042, "virtio-serial-pci": 0x1043}
    return kinds[asked.get(f"/machine/peripheral/{device}", "type")]
