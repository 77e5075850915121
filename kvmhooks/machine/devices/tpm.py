"""The TPM, which swtpm emulates (docs/specs/tpm.rst).

https://libvirt.org/formatdomain.html#tpm-device; libvirt starts swtpm itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.machine.target import OLDEST_LIBVIRT, OLDEST_QEMU
from kvmhooks.spec.enabling import enabled_by

EMULATOR: Final = Feature(
    "a TPM's emulator (swtpm)",
    OLDEST_QEMU,
    OLDEST_LIBVIRT,
    domain="devices/tpm/backendModel=emulator",
)


@frozen(kw_only=True)
class Tpm(Device):
    """The TPM, which swtpm emulates."""

    can_migrate = False

    model: Literal["none", "crb", "tis"] = "none"
    """crb: as TPM 2.0 has it; tis: the older interface."""
    state: Path | None = enabled_by("model")
    """The folder with what the TPM knows, which is kept, for kvm-launch; by default below
    /var/lib/kvm-launch, or ~/.local/state/kvm-launch. libvirt has its own."""

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield the emulator."""
        yield EMULATOR, "model", f'"{self.model}"'

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return swtpm's control socket, and the device."""
        return [
            *("-chardev", f"socket,id={name}-socket,path={context.socket(name)}"),
            *("-tpmdev", f"emulator,id={name},chardev={name}-socket"),
            *option("device", {"driver": f"tpm-{self.model}", "id": f"{name}0", "tpmdev": name}),
        ]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<tpm>``."""
        del context, name
        backend = element("backend", {"type": "emulator", "version": "2.0"})
        return [element("tpm", {"model": f"tpm-{self.model}"}, [backend])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[tpm]``."""
        found = reading.first("tpm", "model", {"tpm-crb": "crb", "tpm-tis": "tis"})
        backend = None if found is None else found[0].find("backend")
        if found is None or backend is None or backend.get("type") != "emulator":
            return {}
        reading.read(backend, "type")
        reading.expect(backend, {"version": "2.0"})
        return {"tpm": {"model": found[1]}}
