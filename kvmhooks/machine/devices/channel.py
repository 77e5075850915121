"""A channel (virtio-serial; https://libvirt.org/formatdomain.html#channel)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen

from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables, fits
from kvmhooks.machine.element import Element
from kvmhooks.machine.virtio_serial import AGENT, channel_argv, channel_element
from kvmhooks.spec.forms import Tag


@frozen(kw_only=True)
class Channel(Device):
    """A channel between a program of the guest and a socket of the host."""

    switch = "name"
    order = Order.CHANNEL
    is_on_microvm = True

    name: Tag
    """Its name in the guest: /dev/virtio-ports/NAME."""
    socket: Path
    """The socket on the host, which QEMU makes."""

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the port, and its socket."""
        return channel_argv(context.channel(name), self.name, str(self.socket))

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<channel>``."""
        return [channel_element(context.channel(name), self.name, self.socket)]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[[channel]]``; one without a socket of its own is none, nor the agent's."""
        tables = []
        for channel in reading.root.all("devices/channel"):
            target, source = channel.find("target"), channel.find("source")
            name = None if target is None else target.get("name")
            path = None if source is None else source.get("path")
            is_virtio = target is not None and target.get("type") == "virtio"
            is_agents = name == AGENT and (path is None or "/qemu/" in path)
            if channel.get("type") != "unix" or not is_virtio or is_agents:
                continue
            if path is None or not fits(Tag, name):
                continue
            reading.read(channel, "type")
            reading.read(target, "type", "name", "state")
            reading.read(source, "mode", "path")
            tables.append({"name": name, "socket": path})
        return {"channel": tables} if tables else {}
