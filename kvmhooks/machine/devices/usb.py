"""The USB controller (https://libvirt.org/formatdomain.html#controllers)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.model import VmSpec

PORTS: Final = 15
"""The most ports of either kind that qemu-xhci has (``XHCI_MAXPORTS_2``, hw/usb/hcd-xhci.h)."""


@frozen(kw_only=True)
class Usb(Device):
    """The USB controller."""

    switch = "controller"
    order = Order.CONTROLLER

    controller: Literal["auto", "xhci", "none"] = "auto"
    """xhci: USB 3; auto: xhci where something is to be plugged in."""

    def is_there(self, spec: VmSpec) -> bool:
        """Return whether it is asked for, or something is to be plugged in."""
        if self.controller == "auto":
            return any(each.is_on_usb for each in spec.input) or bool(spec.host_usb)
        return self.controller == "xhci"

    def problems(self, spec: VmSpec, at: str) -> Iterator[Problem]:
        """Yield what there is no controller for."""
        plugged = [f"input[{index}]" for index, each in enumerate(spec.input) if each.bus == "usb"]
        plugged += [f"host_usb[{index}]" for index in range(len(spec.host_usb))]
        if self.controller == "none" and plugged:
            yield Problem(f"{at}.controller", f'"none" with {plugged[0]}', '"xhci"')

    def not_on_microvm(self) -> Iterator[str]:
        """Yield a controller that is asked for."""
        if self.controller == "xhci":
            yield "controller"

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device."""
        return True

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the controller."""
        ports = {"p2": PORTS, "p3": PORTS}
        controller = {"driver": "qemu-xhci", "id": name, **context.where(name), **ports}
        return option("device", controller)

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<controller>``."""
        attributes = {"type": "usb", "index": 0, "model": "qemu-xhci", "ports": PORTS}
        return [element("controller", attributes, [context.address(name)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[usb]``."""
        for controller in reading.root.all("devices/controller"):
            if controller.get("type") == "usb" and controller.get("model") == "qemu-xhci":
                return {"usb": {"controller": "xhci"}}
        return {}
