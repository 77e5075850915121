"""Descriptions of VMs with every device that the oldest target has, for the laws of renderings."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.laws.strategies import vm_documents

_flags = st.booleans()
_paths = st.sampled_from(["a.raw", "b, c.img", "/dev/vg0/d", "é.qcow2"])


def _table(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


@st.composite
def _disks(draw: st.DrawFn) -> dict[str, Any]:
    bus = draw(st.sampled_from(["virtio-blk", "virtio-scsi", "sata"]))
    cache = draw(st.sampled_from(["none", "writeback", "writethrough", "unsafe"]))
    discard = draw(_flags)
    keys: dict[str, Any] = {
        "path": draw(_paths),
        "bus": bus,
        "cache": cache,
        "discard": discard,
        "readonly": draw(_flags),
        "format": draw(st.sampled_from(["raw", "qcow2"])),
        "aio": draw(st.sampled_from(["auto", "threads", *(["native"] if cache == "none" else [])])),
        "detect_zeroes": draw(st.sampled_from(["off", "on", *(["unmap"] if discard else [])])),
    }
    if bus != "sata":
        keys |= draw(_table(iothread=st.integers(1, 3), queues=st.integers(1, 4)))
        keys |= draw(_table(serial=st.sampled_from(["A1", "b-2"])))
    if bus == "virtio-scsi" and cache == "none" and keys["format"] == "raw":
        keys["shared"] = draw(_flags)
    if bus == "virtio-blk":
        keys |= draw(_table(logical_block=st.just("4KiB")))
    return keys


_nets = st.one_of(
    _table(model=st.sampled_from(["virtio", "e1000e"])),
    st.fixed_dictionaries(
        {"type": st.just("tap"), "device": st.sampled_from(["tap0", "tap1"])},
        optional={
            "queues": st.integers(1, 4),
            "vhost": _flags,
            "rx_queue_size": st.sampled_from([256, 1024]),
            "mtu": st.just(9000),
        },
    ),
    st.fixed_dictionaries({"type": st.just("bridge"), "device": st.just("br0")}),
    st.fixed_dictionaries(
        {"type": st.just("vhost-user"), "socket": st.just("vu.sock")},
        optional={"queues": st.integers(1, 4), "server": _flags},
    ),
)


@st.composite
def _desktops(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "vnc", "spice"]))
    inputs = st.fixed_dictionaries(
        {
            "type": st.sampled_from(["tablet", "mouse", "keyboard"]),
            "bus": st.sampled_from(["usb", "virtio"]),
        }
    )
    video = draw(st.sampled_from(["auto", "virtio", "vga", "qxl", "bochs"]))
    graphics: dict[str, Any] = {"type": kind, "video": video}
    if video in {"virtio", "qxl"} or (kind, video) in {("vnc", "auto"), ("spice", "auto")}:
        graphics["heads"] = draw(st.integers(1, 2))
    return {
        "graphics": graphics,
        "input": draw(st.lists(inputs, max_size=3)),
        "sound": {"model": draw(st.sampled_from(["none", "ich9"]))},
    }


_others = _table(
    clock=_table(
        offset=st.sampled_from(["auto", "utc", "localtime"]),
        rtc_track=st.sampled_from(["host", "guest"]),
        rtc_ticks=st.sampled_from(["delay", "catchup"]),
        hpet=_flags,
        kvmclock=_flags,
    ),
    rng=st.just({"source": "none"})
    | st.fixed_dictionaries(
        {"source": st.sampled_from(["urandom", "builtin"])}, optional={"rate": st.just("1KiB")}
    ),
    vsock=_table(enabled=_flags)
    | st.fixed_dictionaries({"enabled": st.just(value=True), "cid": st.integers(3, 1 << 31)}),
    watchdog=st.fixed_dictionaries(
        {"model": st.just("i6300esb")},
        optional={"action": st.sampled_from(["reset", "pause", "none"])},
    ),
    panic=_table(model=st.just("isa")),
    balloon=st.just({"enabled": True, "free_page_reporting": True}),
    iommu=_table(model=st.sampled_from(["none", "virtio"])),
    filesystem=st.lists(
        st.fixed_dictionaries({"path": st.just("s"), "tag": st.just("t")}), max_size=2
    ),
    channel=st.lists(
        st.fixed_dictionaries({"name": st.just("c"), "socket": st.just("c.sock")}), max_size=1
    ),
    guest=_table(agent=_flags, os=st.sampled_from(["linux", "windows"])),
    console=_table(type=st.sampled_from(["serial", "virtio", "none"])),
    tuning=_table(
        shares=st.integers(2, 10_000),
        vcpus=_table(scheduler=st.sampled_from(["other", "batch", "fifo"]), quota=st.just(50_000)),
        memory=_table(hard=st.just("8GiB")),
    ),
)

_CPU = dict.fromkeys(
    (
        *("migratable", "pmu", "hidden", "hint_dedicated", "poll_control", "pv_eoi"),
        *("pv_spinlocks", "cpu_pm"),
    ),
    _flags,
)


@st.composite
def rich_documents(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a ``vm.toml`` with many devices, which is right for the oldest target."""
    document = draw(vm_documents(placement=("shared",)))
    document["cpu"] |= draw(_table(**_CPU, hyperv=st.sampled_from(["auto", "full", "none"])))
    document["memory"] |= draw(_table(locked=_flags, merge=_flags))
    if not document["memory"].get("hugepages"):
        document["memory"]["backend"] = draw(st.sampled_from(["auto", "memfd"]))
        document["memory"] |= draw(_table(prealloc=_flags))
    document["disk"] = draw(st.lists(_disks(), max_size=4))
    document["net"] = draw(st.lists(_nets, max_size=3))
    whole = document | draw(_desktops()) | draw(_others)
    if whole.get("console", {}).get("type") == "none":
        whole.get("guest", {}).pop("report", None)  # it is read from there
    return whole
