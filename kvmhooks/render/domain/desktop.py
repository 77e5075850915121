"""What a person sits at: screen, input, sound, USB."""

from __future__ import annotations

from kvmhooks.placement.buses import has_usb, is_virtio, video_of
from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of
from kvmhooks.spec.devices import Input

USB_PORTS = 15
QXL_KIB = 65536
VIDEO_KIB = 16384


def devices(plan: Plan) -> list[Element]:
    """The controller, what is plugged into it, the sound, the screen."""
    return [*_usb(plan), *_input(plan), *_sound(plan), *_screen(plan), *_video(plan)]


def _usb(plan: Plan) -> list[Element]:
    if not has_usb(plan.spec):
        return []
    attributes = {"type": "usb", "index": 0, "model": "qemu-xhci", "ports": USB_PORTS}
    return [element("controller", attributes, [address_of(plan, "usb")])]


def _input(plan: Plan) -> list[Element]:
    said = []
    port = 0
    for at, each in enumerate(plan.spec.input):
        if each.type == "evdev":
            taken = {"dev": each.path, "grab": "all", "repeat": "on"}
            said.append(element("input", {"type": "evdev"}, [element("source", taken)]))
            continue
        if is_virtio(each.type, each.bus):
            where = address_of(plan, f"input{at}")
        else:
            port += 1
            where = _plugged(port)
        said.append(_device(each, where))
    for device in plan.spec.host_usb:
        port += 1
        vendor, product = device.id.split(":")
        ids = [element("vendor", {"id": f"0x{vendor}"}), element("product", {"id": f"0x{product}"})]
        kind = {"mode": "subsystem", "type": "usb", "managed": "yes"}
        source = element("source", children=ids)
        said.append(element("hostdev", kind, [source, _plugged(port)]))
    return said


def _device(each: Input, where: Element) -> Element:
    return element("input", {"type": each.type, "bus": each.bus}, [where])


def _plugged(port: int) -> Element:
    return element("address", {"type": "usb", "bus": 0, "port": port})


def _sound(plan: Plan) -> list[Element]:
    sound = plan.spec.sound
    if sound.model == "none":
        return []
    audio = element("audio", {"id": 1, "type": sound.backend})
    card = element("sound", {"model": sound.model}, [element("audio", {"id": 1})])
    card.append(address_of(plan, "sound"))
    return [card, audio]


def _screen(plan: Plan) -> list[Element]:
    graphics = plan.spec.graphics
    if graphics.type == "none":
        return []
    listen = element("listen", {"type": "address", "address": graphics.listen})
    attributes = {"type": graphics.type, "port": graphics.port, "autoport": "no"}
    return [element("graphics", attributes, [listen])]


def _video(plan: Plan) -> list[Element]:
    """A card, or the word that there is none, since libvirt would add one to a screen."""
    kind = video_of(plan.spec)
    if kind is None:
        none = element("video", children=[element("model", {"type": "none"})])
        return [] if plan.spec.graphics.type == "none" else [none]
    sizes: dict[str, dict[str, object]] = {
        "qxl": {"ram": QXL_KIB, "vram": QXL_KIB, "vgamem": VIDEO_KIB},
        "vga": {"vram": VIDEO_KIB},
        "bochs": {"vram": VIDEO_KIB},
    }
    heads = plan.spec.graphics.heads if kind in {"virtio", "qxl"} else 1
    model = element(
        "model", {"type": kind, **sizes.get(kind, {}), "heads": heads, "primary": "yes"}
    )
    where = [] if kind == "ramfb" else [address_of(plan, "video")]
    return [element("video", children=[model, *where])]
