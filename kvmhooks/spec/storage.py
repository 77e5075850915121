"""``[[disk]]`` and ``[[nvme]]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import Rate, Serial, Uuid
from kvmhooks.values import ByteSize, PciAddress

Bus = Literal["virtio-blk", "virtio-scsi", "nvme", "sata"]


@frozen(kw_only=True)
class Throttle:
    """Limits of a disk, in each second."""

    bytes: ByteSize | None = None
    """Of reading and writing together."""
    read_bytes: ByteSize | None = None
    """Of reading."""
    write_bytes: ByteSize | None = None
    """Of writing."""
    operations: Rate | None = None
    """Of reading and writing together, in operations."""
    read_operations: Rate | None = None
    """Of reading, in operations."""
    write_operations: Rate | None = None
    """Of writing, in operations."""


@frozen(kw_only=True)
class Encryption:
    """LUKS: the passphrase is never on a command line."""

    secret: Uuid
    """The UUID of libvirt's secret with the passphrase."""
    key: Path
    """The file with the passphrase, for kvm-launch."""


@frozen(kw_only=True)
class Disk:
    """A disk."""

    path: Path
    """An image file, or a block device below /dev."""
    format: Literal["raw", "qcow2"] = "raw"
    """The image's format. It is never guessed: a guest could write another header."""
    device: Literal["disk", "cdrom"] = "disk"
    """The device that the guest sees; a cdrom is on the bus sata."""
    bus: Bus = "virtio-blk"
    """The bus that it is attached to; a cdrom that says nothing is on sata."""
    iothread: int | None = None
    """The number (from 1) of the iothread that serves it; by default the main loop."""
    iothreads: tuple[int, ...] = ()
    """Several iothreads that share its queues (QEMU 9.0; virtio-scsi: 10.0)."""
    queues: int | None = enabled_by(
        on("bus", "virtio-blk", "virtio-scsi"), (on("device", "disk"), on("bus", "virtio-scsi"))
    )
    """The number of virtqueues; by default QEMU's choice."""
    queue_size: int | None = enabled_by(on("bus", "virtio-blk"), on("device", "disk"))
    """The number of requests that a virtqueue holds; by default QEMU's choice."""
    cache: Literal["none", "writeback", "writethrough", "unsafe"] = "none"
    """The host's page cache: none opens with O_DIRECT."""
    aio: Literal["auto", "io_uring", "native", "threads"] = "auto"
    """The interface for its I/O on the host; auto: io_uring where it works, else native with cache
    none.
    """
    discard: bool = True
    """Space that the guest discards is given back to the host."""
    detect_zeroes: Literal["off", "on", "unmap"] = "off"
    """Zeroes that the guest writes are found; unmap: and discarded."""
    readonly: bool = False
    """The guest may not write to it."""
    shared: bool = False
    """Other VMs use it at the same time."""
    passed: bool = True
    """kvm-launch opens it for QEMU, which then knows it as /dev/fdset/N. A snapshot or a block job
    over QMP may record that name as another image's base: for those, false.
    """
    serial: Serial | None = None
    """The serial number that the guest sees; nvme has one in any case."""
    logical_block: ByteSize | None = None
    """The size of a block that the guest sees: 4KiB for disks that have no smaller ones."""
    boot: int | None = None
    """Its place in the order of what is started; by default the order of the disks."""
    encryption: Encryption | None = None
    """LUKS, in the image or on the device."""
    throttle: Throttle | None = None
    """Limits on its I/O."""

    @property
    def is_block_device(self) -> bool:
        """The path is one of a device: known from it alone, also on another host."""
        return self.path.is_relative_to("/dev")

    @property
    def attached(self) -> Bus:
        """The bus that it is on: a cdrom is never on virtio-blk."""
        is_cdrom = self.device == "cdrom" and self.bus == "virtio-blk"
        return "sata" if is_cdrom else self.bus

    @property
    def served_by(self) -> tuple[int, ...]:
        """The iothreads that serve it."""
        return self.iothreads or (() if self.iothread is None else (self.iothread,))


@frozen(kw_only=True)
class Nvme:
    """An NVMe controller of the host that QEMU drives through VFIO, past the host's kernel."""

    address: PciAddress
    """The controller's PCI address."""
    namespace: int = 1
    """The number of the namespace."""
    iothread: int | None = None
    """The number (from 1) of the iothread that serves it; by default the main loop."""
    queues: int | None = None
    """The number of virtqueues that the guest sees; by default QEMU's choice."""
    managed: bool = True
    """libvirt binds it to vfio-pci and back."""
