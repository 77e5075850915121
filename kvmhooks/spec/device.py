"""The devices that have a file of their own: registered in ``VmSpec``, loaded where a VM has one.

The field ``watchdog`` of ``VmSpec`` registers ``kvmhooks.machine.devices.watchdog`` and its class
``Watchdog``. That is imported by its name when a file has the table, so that another VM costs
nothing for it, and nothing else knows of it.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, get_type_hints

import attrs

if TYPE_CHECKING:
    from kvmhooks.machine.devices.device import Device

FOLDER = "kvmhooks.machine.devices"


class NotLoaded:
    """The class of a device that is not loaded: ``device`` is its name."""

    device: str


@attrs.frozen
class Registration:
    """A field of ``VmSpec`` that has a device."""

    elements: tuple[str, ...]
    """The elements in ``<devices>`` that tell of it; by default one of its own name."""
    of_type: str | None
    """The ``type`` of such elements, where others have them too."""
    implied_by: tuple[str, ...]
    """The devices for which it is there without a table."""

    def tells(self, kind: str | None, model: str | None) -> bool:
        """Return whether an element of this ``type`` and ``model`` tells of it."""
        return model != "none" and self.of_type in {None, kind}


def device(
    *,
    many: bool = False,
    elements: tuple[str, ...] = (),
    of_type: str | None = None,
    implied_by: tuple[str, ...] = (),
) -> Any:
    """Return the field that registers the device of its name, or ``many`` of it."""
    registration = Registration(elements, of_type, implied_by)
    return attrs.field(default=() if many else None, metadata={"device": registration})


def registered(made: type) -> dict[str, Registration]:
    """Return the devices of a class by their names, in the order of its fields."""
    return {
        field.name: field.metadata["device"]
        for field in attrs.fields(made)
        if "device" in field.metadata
    }


def device_class(name: str) -> type[Device]:
    """Import a device, and return its class."""
    made: type[Device] = getattr(importlib.import_module(f"{FOLDER}.{name}"), _class_name(name))
    return made


def resolve_types(made: type) -> None:
    """Resolve the types of the fields, those of devices to classes that stand for them."""
    names = {
        _class_name(name): type(_class_name(name), (NotLoaded,), {"device": name})
        for name in registered(made)
    }
    attrs.resolve_types(made, localns=names)


def hints_of(made: type) -> dict[str, Any]:
    """Return the types of the fields of a class; all devices that it has are loaded."""
    return get_type_hints(made, localns=_classes() if registered(made) else None)


@functools.cache
def _classes() -> dict[str, type]:
    from kvmhooks.spec.model import VmSpec  # noqa: PLC0415 -- it registers by this module

    return {_class_name(name): device_class(name) for name in registered(VmSpec)}


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
