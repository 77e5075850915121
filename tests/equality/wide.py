"""VMs of every shape: those of the laws, with any devices and settings that vm.toml knows."""

from __future__ import annotations

import copy
from typing import Any, Final

from hypothesis import strategies as st

from tests.laws.strategies import vm_documents

TABLES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "machine": ({"irqchip": "split"}, {"irqchip": "on"}),
    "cpu": (
        {"migratable": False},
        {"pmu": False},
        {"pmu": True, "caches": "emulated"},
        {"caches": "host"},
        {"hidden": True, "hint_dedicated": True},
        {"poll_control": True, "pv_ipi": False, "pv_eoi": True},
        {"pv_spinlocks": False, "cpu_pm": True},
        {"hyperv": "full"},
        {"current": 1},
    ),
    "memory": (
        {"backend": "memfd", "share": True},
        {"prealloc": True, "prealloc_threads": 2},
        {"locked": True, "merge": False},
        {"maximum": "1TiB", "slots": 4},
        {"maximum": "1TiB", "dimm": [{"size": "256MiB"}, {"size": "128MiB"}]},
        {"maximum": "1TiB", "virtio": [{"size": "256MiB", "requested": "64MiB"}]},
    ),
    "clock": (
        {"offset": "localtime", "rtc_ticks": "catchup"},
        {"rtc_track": "guest", "hpet": True},
        {"kvmclock": False},
        {"tsc_frequency": 2_000_000_000},
    ),
    "boot": ({"menu": True}, {"firmware": "uefi", "variables": "vars.fd"}),
    "guest": ({"os": "windows"}, {"agent": True}, {"os": "other"}),
    "usb": ({"controller": "xhci"},),
    "graphics": (
        {"type": "vnc"},
        {"type": "vnc", "video": "vga", "port": 5907},
        {"type": "spice", "video": "qxl"},
        {"type": "vnc", "video": "bochs", "listen": "192.0.2.1"},
    ),
    "sound": ({"model": "ich9"},),
    "vsock": ({"enabled": True}, {"enabled": True, "cid": 77}),
    "rng": ({"source": "urandom"}, {"source": "builtin", "rate": "1KiB", "period": 500}),
    "watchdog": ({"model": "i6300esb", "action": "poweroff"},),
    "panic": ({"model": "isa"},),
    "balloon": (
        {"enabled": True},
        {"enabled": True, "free_page_reporting": True, "deflate_on_oom": True},
    ),
    "iommu": ({"model": "virtio"},),
    "shared_memory": ({}, {"name": "frames", "size": "128MiB"}),
    "tuning": (
        {"shares": 2048, "vcpus": {"scheduler": "fifo", "priority": 2}},
        {"total": {"period": 100_000, "quota": 50_000}, "memory": {"hard": "1TiB"}},
    ),
}
"""Table: what is said in it, one of these."""

ARRAYS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "disk": (
        {"path": "scsi.raw", "bus": "virtio-scsi", "queues": 2},
        {"path": "scsi.iso", "bus": "virtio-scsi", "device": "cdrom", "readonly": True},
        {"path": "sata.qcow2", "bus": "sata", "format": "qcow2"},
        {"path": "install.iso", "device": "cdrom", "readonly": True},
        {"path": "/dev/vg0/a", "aio": "native", "queue_size": 256, "serial": "A1"},
        {"path": "shared.raw", "shared": True, "logical_block": "4KiB"},
        {"path": "z.raw", "detect_zeroes": "unmap", "aio": "threads"},
        {"path": "limited.raw", "throttle": {"bytes": "100MiB"}, "discard": False},
    ),
    "net": (
        {"type": "macvtap", "device": "eth0", "mode": "private"},
        {"type": "user", "model": "e1000e"},
        {"type": "vdpa", "path": "/dev/vhost-vdpa-0"},
        {"type": "tap", "device": "tap7", "queues": 4, "mtu": 9000, "rx_queue_size": 1024},
    ),
    "nvme": ({"address": "0000:01:00.0", "queues": 2}, {"address": "0000:02:00.0"}),
    "mdev": ({"uuid": "4b20d080-1b54-4048-85b3-a6a62d165c01"},),
    "filesystem": ({"path": "/srv", "tag": "share", "queue_size": 512},),
    "channel": ({"name": "org.example.0", "socket": "/run/a.sock"},),
    "input": ({}, {"type": "keyboard"}, {"type": "mouse", "bus": "virtio"},
              {"type": "evdev", "path": "/dev/input/event0"}),
}  # fmt: skip
"""Array: tables that may stand in it, each once at most."""


@st.composite
def wide_documents(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a ``vm.toml`` that may say anything; not all of it need go together."""
    document: dict[str, Any] = copy.deepcopy(draw(vm_documents(accel=("auto", "tcg"))))
    for name in draw(st.sets(st.sampled_from(sorted(TABLES)), max_size=5)):
        table = draw(st.sampled_from(TABLES[name]))
        document[name] = {**document.get(name, {}), **copy.deepcopy(table)}
    for name in draw(st.sets(st.sampled_from(sorted(ARRAYS)), max_size=3)):
        chosen = draw(st.lists(st.sampled_from(ARRAYS[name]), unique_by=str, max_size=4))
        document[name] = [*document.get(name, []), *copy.deepcopy(chosen)]
    return document
