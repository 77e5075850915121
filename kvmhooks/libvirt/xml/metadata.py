"""The settings that the VM asks of the host, in an element of our own name space."""

from __future__ import annotations

from kvmhooks.machine.element import Element, element
from kvmhooks.placement.claim import metadata_settings
from kvmhooks.placement.model import Plan
from kvmhooks.policy import GROUPS, NAMESPACE


def elements(plan: Plan) -> list[Element]:
    """Return ``<metadata>``: the settings only, since the pins are libvirt's own elements."""
    settings = metadata_settings(plan)
    children = []
    for group in GROUPS:
        attributes = {
            name.removeprefix(f"{group}."): value
            for name, value in settings.items()
            if name.startswith(f"{group}.")
        }
        if attributes:
            children.append(element(f"{{{NAMESPACE}}}{group}", attributes))
    vm = element(f"{{{NAMESPACE}}}vm", {}, children, namespaces={"kvmhooks": NAMESPACE})
    return [element("metadata", children=[vm])]
