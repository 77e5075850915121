"""Keys that contradict each other: what each pair is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import SpecError
from kvmhooks.spec import parse_vm

VM = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'

DISAGREE = [
    (
        'cpu.features = ["+pcid", "-pcid"]',
        "cpu.features[1]: found '-pcid', expected each feature once",
    ),
    (
        'cpu.features = ["+kvm"]',
        "cpu.features[0]: found '+kvm', expected cpu.hidden",
    ),
    (
        'cpu.features = ["-hv-time"]',
        "cpu.features[0]: found '-hv-time', expected cpu.hyperv",
    ),
    (
        'cpu.l3 = "socket"\ncpu.caches = "host"',
        "cpu.l3: found 'socket', expected nothing beside cpu.caches = \"host\"",
    ),
    (
        (
            'cpu.placement = "dedicated"\ncpu.realtime = true\n'
            'tuning.vcpus.scheduler = "fifo"\ntuning.vcpus.priority = 1'
        ),
        "tuning.vcpus.scheduler: found cpu.realtime beside it, expected one of the two",
    ),
    (
        'memory.backend = "file"',
        'memory.path: found nothing, expected the folder, for backend = "file"',
    ),
    (
        'memory.backend = "ram"\nmemory.share = true',
        'memory.backend: found "ram", expected "memfd" or "file" for memory that others map',
    ),
    (
        'memory.backend = "ram"\nmemory.hugepages = "2MiB"',
        'memory.backend: found "ram", expected "memfd" or "file" for huge pages',
    ),
    (
        "memory.discard = true",
        'memory.discard: found true, expected memory.backend = "file"',
    ),
    (
        'memory.hugepages = "2MiB"\nmemory.prealloc = false',
        "memory.prealloc: found false, expected true: a guest dies where a huge page is missing",
    ),
    (
        "memory.prealloc_threads = 2",
        (
            "memory.prealloc_threads: found 2, expected memory.prealloc beside it or "
            "memory.hugepages beside it"
        ),
    ),
    (
        'memory.share = false\n[[filesystem]]\npath = "d"\ntag = "d"',
        "memory.share: found false, expected true: virtiofsd maps the guest's memory",
    ),
    (
        '[[memory.dimm]]\nsize = "1GiB"',
        "memory.dimm: found an array, expected memory.maximum beside it",
    ),
    (
        'memory.maximum = "1GiB"\n[[memory.dimm]]\nsize = "1GiB"',
        "memory.maximum: found 1GiB, with 2048MiB there at the start, expected no less than that",
    ),
    (
        (
            'memory.maximum = "4GiB"\nmemory.slots = 1\n'
            '[[memory.dimm]]\nsize = "1GiB"\n[[memory.dimm]]\nsize = "1GiB"'
        ),
        "memory.slots: found 1, expected 2 at least",
    ),
    (
        'memory.maximum = "4GiB"\n[[memory.dimm]]\nsize = "1MiB"',
        "memory.dimm[0].size: found '1MiB', expected whole multiples of 2MiB",
    ),
    (
        'memory.maximum = "4GiB"\n[[memory.virtio]]\nsize = "1GiB"\nblock = "3MiB"',
        "memory.virtio[0].block: found '3MiB', expected a power of two from 2MiB on",
    ),
    (
        'memory.maximum = "4GiB"\n[[memory.virtio]]\nsize = "1026MiB"\nblock = "4MiB"',
        "memory.virtio[0].size: found '1026MiB', expected whole blocks of 4MiB",
    ),
    (
        'memory.maximum = "4GiB"\n[[memory.virtio]]\nsize = "1GiB"\nrequested = "2GiB"',
        "memory.virtio[0].requested: found '2GiB', expected 1GiB at most",
    ),
    (
        '[[disk]]\npath = "d"\naio = "native"\ncache = "writeback"',
        'disk[0].aio: found "native" with cache = "writeback", expected cache = "none"',
    ),
    (
        '[[disk]]\npath = "d"\ndevice = "cdrom"\nbus = "nvme"',
        'disk[0].bus: found "nvme" for a cdrom, expected "sata" or "virtio-scsi"',
    ),
    (
        '[[disk]]\npath = "d"\nthrottle = {bytes = "1MiB", read_bytes = "1MiB"}',
        (
            "disk[0].throttle.bytes: found read or write beside it,"
            " expected both together or each apart"
        ),
    ),
    (
        '[[disk]]\npath = "d"\niothread = 1\niothreads = [1, 2]',
        "disk[0].iothread: found iothreads beside it, expected one of the two",
    ),
    (
        '[[disk]]\npath = "d"\nbus = "sata"\niothread = 1',
        'disk[0].bus: found "sata" with iothreads, expected "virtio-blk" or "virtio-scsi"',
    ),
    (
        '[[disk]]\npath = "d"\niothreads = [1, 1]',
        "disk[0].iothreads: found [1, 1], expected each iothread once",
    ),
    (
        '[[disk]]\npath = "d"\nbus = "sata"\nqueues = 2',
        'disk[0].queues: found 2, expected disk[0].bus = "virtio-blk" or "virtio-scsi"',
    ),
    (
        "boot.secure_boot = true",
        'boot.secure_boot: found true, expected boot.firmware = "uefi"',
    ),
    (
        'boot.code = "c"',
        "boot.code: found '/vms/c', expected boot.firmware = \"uefi\"",
    ),
    (
        '[[disk]]\npath = "d"\ndetect_zeroes = "unmap"\ndiscard = false',
        'disk[0].detect_zeroes: found "unmap" without discard, expected "on", or discard = true',
    ),
    (
        '[[disk]]\npath = "d"\nformat = "qcow2"\nshared = true',
        'disk[0].shared: found true, expected format = "raw" and cache = "none"',
    ),
    (
        '[[disk]]\npath = "d"\nlogical_block = "3KiB"',
        "disk[0].logical_block: found '3KiB', expected a power of two, 32KiB at most",
    ),
    (
        'memory.share = false\n[[net]]\ntype = "vhost-user"\nsocket = "s"',
        "memory.share: found false, expected true: a vhost-user switch maps the guest's",
    ),
    (
        '[[net]]\ntype = "tap"',
        'net[0].device: found nothing, expected the name of the tap: type is "tap"',
    ),
    (
        '[[net]]\ntype = "user"\nvhost = true',
        'net[0].vhost: found true, expected net[0].type = "tap", "bridge" or "macvtap"',
    ),
    (
        '[[net]]\ntype = "vdpa"\npath = "/dev/vhost-vdpa-0"\nmodel = "e1000e"',
        'net[0].model: found "e1000e", expected "virtio": type is "vdpa"',
    ),
    (
        '[[net]]\ntype = "tap"\ndevice = "t"\nrx_queue_size = 300',
        "net[0].rx_queue_size: found 300, expected 256, 512 or 1024",
    ),
    (
        '[[input]]\ntype = "evdev"',
        'input[0].path: found nothing, expected the device of the host: type is "evdev"',
    ),
    (
        'usb.controller = "none"\n[[input]]\ntype = "tablet"\nbus = "usb"',
        'usb.controller: found "none" with input[0], expected "xhci"',
    ),
    (
        'sound.model = "ich9"\nsound.backend = "spice"',
        'sound.backend: found "spice", expected graphics.type = "spice"',
    ),
    (
        'sound.backend = "alsa"',
        "sound.backend: found 'alsa', expected sound.model beside it",
    ),
    (
        "balloon.deflate_on_oom = true",
        "balloon.deflate_on_oom: found true, expected balloon.enabled = true",
    ),
    (
        "tuning.vcpus.priority = 5",
        'tuning.vcpus.priority: found 5, expected tuning.vcpus.scheduler = "fifo" or "rr"',
    ),
    (
        'image = [{ path = "/a", size = "1MiB" }]',
        "image[0].path: found '/a', which no disk is, expected the path of a disk",
    ),
    (
        'image = [{ path = "/a", size = "1MiB" }]\ndisk = [{ path = "/a" }]',
        'disk[0].format: found "raw", expected "qcow2", as [[image]] makes it',
    ),
    (
        'cloud_init.seed = "/s"',
        (
            "cloud_init.seed: found '/s', which no disk is, "
            "expected the path of a disk, with readonly = true"
        ),
    ),
    (
        "tuning.total.period = 2000000",
        "tuning.total.period: found 2000000, expected a second at most: 1000000",
    ),
    (
        '[watchdog]\naction = "pause"',
        "watchdog.action: found 'pause', expected watchdog.model beside it",
    ),
    (
        '[tuning.io]\ndevice = [{ path = "/dev/sda" }]',
        "tuning.io.device[0]: found '/dev/sda' alone, expected a weight or a limit beside it",
    ),
    (
        '[machine]\ntype = "microvm"\n[sound]\nmodel = "ich9"',
        'sound.model: found machine.type = "microvm", expected q35: microvm has no such thing',
    ),
]
"""Lines of a file, and all that is told of them."""


@pytest.mark.parametrize(("lines", "message"), DISAGREE)
def test_keys_that_disagree_are_told(lines: str, message: str) -> None:
    """The whole message, with its place, what was found and what would do, and no other."""
    with pytest.raises(SpecError) as error:
        parse_vm(VM + lines, folder=Path("/vms"))
    assert str(error.value) == f"vm.toml: {message}"
