"""The screen and the graphics card.

https://libvirt.org/formatdomain.html#graphical-framebuffers and #video-devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import AUDIO, Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables, fits, number
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.machine.target import OLDEST_LIBVIRT, OLDEST_QEMU
from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import IpAddress, Port
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import has_device

SPICE: Final = Feature("SPICE", OLDEST_QEMU, OLDEST_LIBVIRT, domain="devices/graphics/type=spice")

SLOT: Final = 0x01
"""libvirt's own place for the card."""

FIRST_VNC_PORT: Final = 5900
QXL_KIB: Final = 65536
VIDEO_MIB: Final = 16


@frozen(kw_only=True)
class Graphics(Device):
    """The screen."""

    stem = "video"
    switch = "type"
    order = Order.SCREEN

    type: Literal["none", "vnc", "spice"] = "none"
    """The way to look at it."""
    video: Literal["auto", "none", "virtio", "vga", "qxl", "bochs", "ramfb"] = "auto"
    """The graphics card; auto: virtio where there is a screen, else none."""
    listen: IpAddress = enabled_by("type", default=IpAddress("127.0.0.1"))
    """The address of the host on which it is served."""
    port: Port = enabled_by("type", default=Port(5900))
    """Its port."""
    heads: int = enabled_by(
        on("video", "auto", "virtio", "qxl"), (on("type"), on("video", "virtio", "qxl")), default=1
    )
    """The number of monitors of a virtio or qxl card."""

    @property
    def card(self) -> str | None:
        """The graphics card, if any."""
        if self.video == "auto":
            return None if self.type == "none" else "virtio"
        return None if self.video == "none" else self.video

    def is_there(self, spec: VmSpec) -> bool:
        """Return whether there is a screen, or a card."""
        del spec
        return self.type != "none" or self.card is not None

    def not_on_microvm(self) -> Iterator[str]:
        """Yield the screen, and the card that is asked for."""
        if self.type != "none":
            yield "type"
        if self.video not in {"auto", "none"}:
            yield "video"

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield SPICE, without which a QEMU may be built."""
        if self.type == "spice":
            yield SPICE, "type", '"spice"'

    @property
    def slot(self) -> int | None:
        """The slot of the card."""
        return None if self.card is None else SLOT

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the screen, and the card."""
        return [*self._screen(context), *self._card(context, name)]

    def _screen(self, context: DeviceContext) -> list[str]:
        """Return the screen; VNC counts displays from port 5900, and asks nobody for a password."""
        listen = f"[{self.listen}]" if ":" in self.listen else self.listen
        if self.type == "vnc":
            heard = f",audiodev={AUDIO}" if has_device(context.spec, "sound") else ""
            return ["-vnc", f"{listen}:{self.port - FIRST_VNC_PORT}{heard}"]
        if self.type == "spice":
            served = f"port={self.port},addr={self.listen}"
            return ["-spice", f"{served},disable-ticketing=on,seamless-migration=on"]
        return ["-display", "none"]

    def _card(self, context: DeviceContext, name: str) -> list[str]:
        if self.card is None:
            return []
        cards: dict[str, dict[str, Any]] = {
            "virtio": {"driver": "virtio-vga", "max_outputs": self.heads},
            "vga": {"driver": "VGA", "vgamem_mb": VIDEO_MIB},
            "qxl": {
                "driver": "qxl-vga",
                "max_outputs": self.heads,
                "ram_size": QXL_KIB << 10,
                "vram_size": QXL_KIB << 10,
                "vram64_size_mb": 0,
                "vgamem_mb": VIDEO_MIB,
            },
            "bochs": {"driver": "bochs-display", "vgamem": VIDEO_MIB << 20},
            "ramfb": {"driver": "ramfb"},
        }
        place = {} if self.card == "ramfb" else context.where(name)
        return option("device", {**cards[self.card], "id": f"{name}0", **place})

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<graphics>`` and ``<video>``."""
        screen = []
        if self.type != "none":
            listen = element("listen", {"type": "address", "address": self.listen})
            attributes = {"type": self.type, "port": self.port, "autoport": "no"}
            screen = [element("graphics", attributes, [listen])]
        return [*screen, self._video(context, name)]

    def _video(self, context: DeviceContext, name: str) -> Element:
        """Return a card, or that there is none, since libvirt would add one to a screen."""
        if self.card is None:
            return element("video", children=[element("model", {"type": "none"})])
        sizes: dict[str, dict[str, object]] = {
            "qxl": {"ram": QXL_KIB, "vram": QXL_KIB, "vgamem": VIDEO_MIB << 10},
            "vga": {"vram": VIDEO_MIB << 10},
            "bochs": {"vram": VIDEO_MIB << 10},
        }
        attributes = {
            "type": self.card,
            **sizes.get(self.card, {}),
            "heads": self.heads if self.card in {"virtio", "qxl"} else 1,
            "primary": "yes",
        }
        where = [] if self.card == "ramfb" else [context.address(name)]
        return element("video", children=[element("model", attributes), *where])

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[graphics]``."""
        found = reading.first("graphics", "type", {"vnc": "vnc", "spice": "spice"})
        if found is None:
            card = _video_of(reading)
            return {} if card.get("video", "none") == "none" else {"graphics": card}
        screen, kind = found
        table: Tables = {"type": kind}
        port = screen.get("port", "-1")
        if port.isdigit() and screen.get("autoport") == "no":
            reading.read(screen, "port", "autoport")
            table["port"] = number(port, f"{screen.path}@port")
        else:
            for name in ("port", "autoport"):
                reading.decide_attribute(screen, name, "5900, unless vm.toml says another")
        for listen in screen.all("listen"):
            address = listen.get("address")
            if listen.get("type") == "address" and (address is None or fits(IpAddress, address)):
                reading.read(listen, "type", "address")
                table["listen"] = address or "127.0.0.1"
        if screen.get("listen") in {table.get("listen"), "127.0.0.1"}:
            reading.read(screen, "listen")
        return {"graphics": {**table, **_video_of(reading)}}


def _video_of(reading: DomainReading[Any]) -> Tables:
    video = reading.root.find("devices/video")
    model = None if video is None else video.find("model")
    if model is None:
        return {}
    kind = model.get("type", "")
    if kind not in {"virtio", "vga", "qxl", "bochs", "ramfb", "none"}:
        return {}
    reading.read(video)
    reading.read(model, "type")
    reading.expect(model, {"primary": "yes"})
    for name in ("ram", "vram", "vgamem", "vram64"):
        reading.decide_attribute(model, name, "as much as the card has by itself")
    table: Tables = {"video": kind}
    heads = model.get("heads", "1")
    reading.read(model, "heads")
    if heads != "1" and kind in {"virtio", "qxl"}:
        table["heads"] = number(heads, f"{model.path}@heads")
    return table
