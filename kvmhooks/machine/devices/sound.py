"""The sound card, and where it is heard (https://libvirt.org/formatdomain.html#sound-devices)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import AUDIO, Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.spec.enabling import enabled_by
from kvmhooks.spec.model import VmSpec

VIRTIO: Final = Feature("virtio-sound", (8, 2), (10, 4), "virtio-sound-pci")
PIPEWIRE: Final = Feature("sound through PipeWire", (8, 1), (9, 10))

SLOT: Final = 0x1B
"""libvirt's own place for it."""


@frozen(kw_only=True)
class Sound(Device):
    """The sound card."""

    order = Order.SOUND

    model: Literal["none", "ich9", "virtio"] = "none"
    """ich9: as real ones; virtio: QEMU 8.2, libvirt 10.4."""
    backend: Literal["none", "spice", "pipewire", "pulseaudio", "alsa"] = enabled_by(
        "model", default="none"
    )
    """The place where it is heard; pipewire: QEMU 8.1, libvirt 9.10."""

    def problems(self, spec: VmSpec, at: str) -> Iterator[Problem]:
        """Yield a backend that is of no use."""
        screen = None if spec.graphics is None else spec.graphics.type
        if self.backend == "spice" and self.model != "none" and screen != "spice":
            yield Problem(f"{at}.backend", '"spice"', 'graphics.type = "spice"')

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield what the newer card and the newer backend need."""
        if self.model == "virtio":
            yield VIRTIO, "model", '"virtio"'
        if self.backend == "pipewire":
            yield PIPEWIRE, "backend", '"pipewire"'

    @property
    def slot(self) -> int | None:
        """The slot of the chipset's card."""
        return SLOT if self.model == "ich9" else None

    @property
    def is_express(self) -> bool:
        """Virtio's is a PCI Express device."""
        return self.model == "virtio"

    def argv_before(self) -> list[str]:
        """Return the backend."""
        driver = {"pulseaudio": "pa"}.get(self.backend, self.backend)
        return option("audiodev", {"id": AUDIO, "driver": driver})

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the card; the chipset's one has a codec, too."""
        if self.model == "virtio":
            return option("device", {**context.plug("virtio-sound", name), "audiodev": AUDIO})
        card = f"{name}0"
        controller = {"driver": "ich9-intel-hda", "id": card, **context.where(name)}
        codec = {"driver": "hda-duplex", "id": f"{card}-codec0", "bus": f"{card}.0", "cad": 0}
        return [*option("device", controller), *option("device", {**codec, "audiodev": AUDIO})]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<sound>`` and ``<audio>``."""
        card = [element("audio", {"id": 1}), context.address(name)]
        audio = element("audio", {"id": 1, "type": self.backend})
        return [element("sound", {"model": self.model}, card), audio]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[sound]``; libvirt writes ``<audio>`` without a card, too."""
        found = reading.first("sound", "model", {"ich9": "ich9", "virtio": "virtio"})
        named = None if found is None else found[0].find("audio")
        heard = {audio.get("id"): audio for audio in reading.root.all("devices/audio")}
        table: Tables = {} if found is None else {"model": found[1]}
        for number, audio in heard.items():
            kind = audio.get("type", "")
            is_its = found is not None and (named is None or named.get("id") == number)
            if is_its and kind in {"none", "spice", "pipewire", "pulseaudio", "alsa"}:
                reading.read(audio, "id", "type")
                table["backend"] = kind
            elif found is None and kind in {"none", "spice"}:
                reading.decide(audio, "devices/audio", "there is no sound card")
        if named is not None:
            reading.read(named, "id")
        return {"sound": table} if table else {}
