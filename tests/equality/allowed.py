"""The differences allowed between libvirt's arguments and ours: a short list, each with its reason.

``DEFAULTS`` are no differences: one side says what QEMU does in any case. ``ALLOWED`` are, and do
not reach the guest or are libvirt's own way of running QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple


class Rule(NamedTuple):
    """Places that may differ."""

    place: str
    """A regular expression that the whole place matches."""
    reason: str


DEFAULTS: Final[tuple[tuple[str, Any, str], ...]] = (
    (r"device/scsi-cd \d+/write-cache", True, "hw/block/block.c: as the backend, which has"),
    (r"numa/dist (\d+) \1", 10, "hw/core/numa.c: to itself"),
    (r"numa/dist \d+ \d+", 20, "hw/core/numa.c: to others, and libvirt leaves it out"),
    (r"machine/hpet", True, "hw/i386/pc.c"),
    (r"cpu/host-cache-info", False, "target/i386/cpu.c"),
    (r"cpu/kvm-hint-dedicated", False, "target/i386/cpu.c"),
    (r"device/ide-cd \d+/write-cache", True, "hw/block/block.c: as the backend, which has"),
    (r"cpu/migratable", True, "target/i386/cpu.c: max and host"),
    (r"overcommit/mem-lock", False, "softmmu/vl.c"),
    (r"overcommit/cpu-pm", False, "softmmu/vl.c"),
    (r"accel/thread", "multi", "accel/tcg/tcg-all.c: where host and guest are x86"),
    (r"device/isa-serial \d+/index", 0, "hw/char/serial-isa.c: the first free one"),
    (r"-append", "", "hw/i386/x86.c: the kernel has no command line"),
    (r"device/.*/multifunction", False, "hw/pci/pci.c"),
    (r"device/virtio-blk-pci .*/write-cache", True, "hw/block/block.c: as the backend, which has"),
    (r"device/.*/drive(/file)*/(cache\.direct|cache\.no-flush|read-only)", False, "block.c"),
)
"""(place, value, source): what QEMU does where nothing is said."""

ALLOWED: Final = (
    Rule(
        r"-S|-no-shutdown|mon(/.*)?|msg(/.*)?", "how libvirt controls QEMU; kvm-launch has its own"
    ),
    Rule(r"unused/throttle-group", "libvirt sets limits over QMP: our filters are looked through"),
    Rule(r"unused/secret", "the key that libvirt gives secrets to QEMU with"),
    Rule(r"unused/audiodev", "libvirt has one also where no device makes a sound"),
    Rule(r"machine/type", "libvirt writes the version that q35 stands for"),
    Rule(r"device/.*/netdev(/.*)?", "the translation makes a tap of every interface"),
    Rule(r"device/.*/chardev(/.*)?", "a pseudo-terminal of libvirt's, or standard output"),
    Rule(r"device/.*/drive/(file/)?auto-read-only", "of the host's file, whose format node says"),
    Rule(r"device/.*/drive/file/read-only", "as above"),
    Rule(r"cpu/monitor", "libvirt's EPYC has no MONITOR, QEMU's has; KVM has none in any case"),
    Rule(r"sandbox/(elevateprivileges|spawn)", "QEMU itself starts the bridge helper"),
    Rule(
        r"device/virtio-net-pci .*/(mq|vectors|host_mtu|[rt]x_queue_size)",
        "that tap has one queue and nothing else; test_launch asks Linux for queues and MTU",
    ),
    Rule(r"device/.*/drive/file/discard", "of the host's file: the format node above it decides"),
    Rule(r"numa/node [^/]*/memdev/mem-path", "libvirt's own folder below memory_backing_dir"),
    Rule(r"-runas", "libvirt starts QEMU as that user itself"),
    Rule(r"vnc/audiodev(/.*)?", "libvirt lets whoever looks at the screen hear the guest"),
    Rule(r"device/vhost-vsock-pci .*/vhostfd", "libvirt opens it; QEMU does by itself"),
)
"""The whole list."""


def remaining(found: Iterable[tuple[str, Any, Any]], used: set[str]) -> list[tuple[str, Any, Any]]:
    """The differences that no rule allows; ``used`` collects the rules that were needed."""
    return [
        (place, ours, theirs)
        for place, ours, theirs in found
        if not _is_default(place, ours, theirs) and not _is_allowed(place, used)
    ]


def _is_default(place: str, ours: Any, theirs: Any) -> bool:
    values = [value for value in (ours, theirs) if value is not None]
    return len(values) == 1 and any(
        re.fullmatch(pattern, place) and values[0] == value for pattern, value, _ in DEFAULTS
    )


def _is_allowed(place: str, used: set[str]) -> bool:
    for rule in ALLOWED:
        if re.fullmatch(rule.place, place):
            used.add(rule.place)
            return True
    return False
