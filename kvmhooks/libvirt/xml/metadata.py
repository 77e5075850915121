"""The isolation policy, in an element of our own name space."""

from __future__ import annotations

from kvmhooks.machine.element import Element, element, yes_no
from kvmhooks.placement.claim import device_settings
from kvmhooks.placement.model import Plan
from kvmhooks.policy import NAMESPACE


def elements(plan: Plan) -> list[Element]:
    """Return ``<metadata>``: the policy only, since the pins are libvirt's own elements."""
    policy = plan.spec.isolation
    attributes = {"exclusive": yes_no(policy.exclusive), "strict": yes_no(policy.strict)}
    if plan.idle:
        attributes["siblings"] = "idle"
    children = [element(f"{{{NAMESPACE}}}isolation", attributes)]
    settings = device_settings(plan)
    if settings:
        devices = {name.removeprefix("devices."): value for name, value in settings.items()}
        children.append(element(f"{{{NAMESPACE}}}devices", devices))
    vm = element(f"{{{NAMESPACE}}}vm", {}, children, namespaces={"kvmhooks": NAMESPACE})
    return [element("metadata", children=[vm])]
