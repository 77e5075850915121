"""A small device of a guest, and all that there is to say of one.

A file in this folder has one such class: its fields are the keys of its table in ``vm.toml``, its
methods make of them all that is made of a device. ``VmSpec`` registers it
(``kvmhooks.spec.device``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, ClassVar, Final

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.machine import arguments
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element, pci_address
from kvmhooks.machine.helper_sockets import helper_socket
from kvmhooks.machine.pci_layout import Layout
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.spec.model import VmSpec

AUDIO: Final = "audio1"
"""QEMU's id of the place where sound is heard: the sound card and the screen have it."""


class Order(IntEnum):
    """The order in which devices are written and get their ports; alike ones by their tables."""

    CHANNEL = 0
    FOLDER = 1
    CONTROLLER = 2
    PLUGGED = 3
    """It is plugged into a controller."""
    SOUND = 4
    SCREEN = 5
    TRANSLATION = 6
    """It translates addresses of devices, which QEMU wants to be told of after it."""
    OTHER = 7


@frozen(kw_only=True)
class DeviceContext:
    """The VM of a device that is written down."""

    spec: VmSpec
    layout: Layout
    cid: int
    """The guest's vsock address."""
    vcpus: int

    def socket(self, what: str) -> str:
        """Return the path of the socket of a helper, ``fs0`` or ``tpm``, if libvirt starts none."""
        return helper_socket(self.spec.name, what)

    def plug(self, driver: str, name: str) -> dict[str, Any]:
        """Return the first properties of the virtio device ``name``."""
        on_pci = self.spec.machine.type != "microvm"
        return arguments.plug(self.layout, driver, name, on_pci=on_pci)

    def channel(self, name: str) -> int:
        """Return the number of a channel, from 0; the agent's is the first."""
        return int(name.removeprefix("channel")) + self.spec.guest.agent

    def on_usb(self, name: str) -> dict[str, Any]:
        """Return the bus and the port of a USB device, for QEMU."""
        return {"bus": "usb.0", "port": str(self._usb_port(name))}

    def usb_address(self, name: str) -> Element:
        """Return the address of a USB device, for libvirt."""
        return element("address", {"type": "usb", "bus": 0, "port": self._usb_port(name)})

    def _usb_port(self, name: str) -> int:
        inputs = [f"input{at}" for at, each in enumerate(self.spec.input) if each.is_on_usb]
        return [*inputs, *(f"usb{at}" for at in range(len(self.spec.host_usb)))].index(name) + 1

    def where(self, name: str) -> dict[str, Any]:
        """Return the bus and the address of a PCI device, for QEMU."""
        return arguments.where(self.layout, name)

    def address(self, name: str) -> Element:
        """Return the address of a PCI device, for libvirt."""
        return pci_address(self.layout.places[name])


@frozen(kw_only=True)
class Device(ABC):
    """A device, or the table that says that there is none."""

    stem: ClassVar[str] = ""
    """Its name among the guest's devices; by default its table's. Of several, each has its number.
    """
    switch: ClassVar[str] = "model"
    """The key that says ``none`` or false where there is none; nothing: its table is the device."""
    order: ClassVar[Order] = Order.OTHER
    is_on_microvm: ClassVar[bool] = False
    can_migrate: ClassVar[bool] = True
    """Its state goes along to another QEMU on this host."""

    def is_there(self, spec: VmSpec) -> bool:
        """Return whether the VM of ``spec`` has it."""
        del spec
        return getattr(self, self.switch) not in {"none", False}

    def problems(self, spec: VmSpec, at: str) -> Iterator[Problem]:
        """Yield what is wrong between its keys, and between them and others; ``at`` is its path."""
        del spec, at
        yield from ()

    def not_on_microvm(self) -> Iterator[str]:
        """Yield its keys that ask for something that a microvm has not."""
        if not self.is_on_microvm:
            yield self.switch

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield what it cannot be without, and the key and its value that ask for that."""
        yield from ()

    def wants(self) -> Iterator[tuple[Feature, str]]:
        """Yield what is left out where it is not there, and the key that asks for it."""
        yield from ()

    @property
    def slot(self) -> int | None:
        """Its slot on PCI's root bus; None where it stands elsewhere."""
        return None

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device, which has a root port of its own."""
        return False

    def argv_before(self) -> list[str]:
        """Return QEMU's arguments for what it, and others of its kind, refer to."""
        return []

    @abstractmethod
    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return QEMU's arguments for the device ``name``."""

    @abstractmethod
    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return libvirt's elements for the device ``name``."""

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return its table of a domain with an element of its kind; nothing if it is another."""
        del reading
        return {}
