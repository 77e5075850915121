"""What a person sits at: screen, input, sound, USB."""

from __future__ import annotations

from typing import Any, Final

from kvmhooks.placement.buses import has_usb, video_of
from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.argv.plug import plug, where

USB_PORTS: Final = 15
FIRST_VNC_PORT: Final = 5900
VIDEO_MIB: Final = 16
QXL_KIB: Final = 65536


def arguments(plan: Plan) -> list[str]:
    """The controller before what is plugged into it, the sound's other end before the card."""
    return [*_usb(plan), *_input(plan), *_audio(plan), *_screen(plan), *_video(plan), *_sound(plan)]


def _usb(plan: Plan) -> list[str]:
    if not has_usb(plan.spec):
        return []
    ports = {"p2": USB_PORTS, "p3": USB_PORTS}
    return option("device", {"driver": "qemu-xhci", "id": "usb", **where(plan, "usb"), **ports})


def _input(plan: Plan) -> list[str]:
    said: list[str] = []
    port = 0
    for at, each in enumerate(plan.spec.input):
        name = f"input{at}"
        if each.type == "evdev":
            taken = {"evdev": str(each.path), "grab_all": True, "repeat": True}
            said += option("object", {"qom-type": "input-linux", "id": name, **taken})
        elif each.bus == "virtio":
            said += option("device", plug(plan, f"virtio-{each.type}", name))
        else:
            port += 1
            plugged: dict[str, Any] = {"bus": "usb.0", "port": str(port)}
            said += option("device", {"driver": _USB_INPUT[each.type], "id": name, **plugged})
    for at, device in enumerate(plan.spec.host_usb):
        vendor, product = (int(half, 16) for half in device.id.split(":"))
        wanted = {"vendorid": vendor, "productid": product}
        plugged = {"bus": "usb.0", "port": str(port + at + 1)}
        said += option("device", {"driver": "usb-host", "id": f"usb{at}", **wanted, **plugged})
    return said


_USB_INPUT: Final = {"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd"}


def _audio(plan: Plan) -> list[str]:
    backend = {"pulseaudio": "pa"}.get(plan.spec.sound.backend, plan.spec.sound.backend)
    if plan.spec.sound.model == "none":
        return []
    return option("audiodev", {"id": "audio1", "driver": backend})


def _screen(plan: Plan) -> list[str]:
    """VNC counts displays from port 5900; no one who can connect is asked for a password."""
    graphics = plan.spec.graphics
    listen = f"[{graphics.listen}]" if ":" in graphics.listen else graphics.listen
    if graphics.type == "vnc":
        heard = ",audiodev=audio1" if plan.spec.sound.model != "none" else ""
        return ["-vnc", f"{listen}:{graphics.port - FIRST_VNC_PORT}{heard}"]
    if graphics.type == "spice":
        served = f"port={graphics.port},addr={graphics.listen}"
        return ["-spice", f"{served},disable-ticketing=on,seamless-migration=on"]
    return ["-display", "none"]


def _video(plan: Plan) -> list[str]:
    kind = video_of(plan.spec)
    if kind is None:
        return []
    heads = plan.spec.graphics.heads
    cards: dict[str, dict[str, Any]] = {
        "virtio": {"driver": "virtio-vga", "max_outputs": heads},
        "vga": {"driver": "VGA", "vgamem_mb": VIDEO_MIB},
        "qxl": {
            "driver": "qxl-vga",
            "max_outputs": heads,
            "ram_size": QXL_KIB << 10,
            "vram_size": QXL_KIB << 10,
            "vram64_size_mb": 0,
            "vgamem_mb": VIDEO_MIB,
        },
        "bochs": {"driver": "bochs-display", "vgamem": VIDEO_MIB << 20},
        "ramfb": {"driver": "ramfb"},
    }
    place = {} if kind == "ramfb" else where(plan, "video")
    return option("device", {**cards[kind], "id": "video0", **place})


def _sound(plan: Plan) -> list[str]:
    if plan.spec.sound.model == "virtio":
        return option("device", {**plug(plan, "virtio-sound", "sound"), "audiodev": "audio1"})
    if plan.spec.sound.model == "none":
        return []
    controller = {"driver": "ich9-intel-hda", "id": "sound0", **where(plan, "sound")}
    codec = {"driver": "hda-duplex", "id": "sound0-codec0", "bus": "sound0.0", "cad": 0}
    return [*option("device", controller), *option("device", {**codec, "audiodev": "audio1"})]
