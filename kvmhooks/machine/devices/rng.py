"""Random numbers (virtio-rng; https://libvirt.org/formatdomain.html#random-number-generator-device)."""

from __future__ import annotations

from typing import Any, Literal

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables, number
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.enabling import enabled_by
from kvmhooks.values import ByteSize

FILE = "/dev/urandom"


@frozen(kw_only=True)
class Rng(Device):
    """Random numbers for the guest."""

    switch = "source"
    is_on_microvm = True

    source: Literal["none", "urandom", "builtin"] = "none"
    """urandom: the host's /dev/urandom; builtin: QEMU's own, which is the same without a file."""
    rate: ByteSize | None = enabled_by("source")
    """The most bytes in each period; by default all that is asked for."""
    period: int = enabled_by("rate", default=1000)
    """The period in milliseconds."""

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device."""
        return True

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the source, and the device."""
        source = f"{name}-source"
        kind = "rng-builtin" if self.source == "builtin" else "rng-random"
        file = None if self.source == "builtin" else FILE
        limited = {} if self.rate is None else {"max-bytes": int(self.rate), "period": self.period}
        return [
            *option("object", {"qom-type": kind, "id": source, "filename": file}),
            *option("device", {**context.plug("virtio-rng", name), "rng": source, **limited}),
        ]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<rng>``."""
        limited = {} if self.rate is None else {"bytes": int(self.rate), "period": self.period}
        if self.source == "builtin":
            backend = element("backend", {"model": "builtin"})
        else:
            backend = element("backend", {"model": "random"}, text=FILE)
        children = [*([element("rate", limited)] if limited else []), backend]
        return [element("rng", {"model": "virtio"}, [*children, context.address(name)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[rng]``."""
        found = reading.first("rng", "model", {"virtio": "virtio"})
        backend = None if found is None else found[0].find("backend")
        if found is None or backend is None:
            return {}
        sources = {"builtin": "builtin", "random": "urandom"}
        source = sources.get(backend.get("model", ""))
        if source is None or backend.text.strip() not in {"", FILE, "/dev/random"}:
            return {}
        reading.read(backend, "model")
        table: Tables = {"source": source}
        rate = found[0].find("rate")
        if rate is not None and rate.get("bytes") is not None:
            size = number(rate.get("bytes", ""), f"{rate.path}@bytes")
            if size % 1024 == 0 and size:
                reading.read(rate, "bytes", "period")
                table["rate"] = str(ByteSize(size))
                table["period"] = number(rate.get("period", "1000"), f"{rate.path}@period")
        return {"rng": table}
