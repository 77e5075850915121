"""The isolation policy, in an element of our own name space."""

from __future__ import annotations

from lxml import etree

from kvmhooks.isolate.groups import LIBVIRT
from kvmhooks.isolate.policy import NAMESPACE
from kvmhooks.placement.claim import device_settings
from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element, yes_no


def elements(plan: Plan) -> list[Element]:
    """``<metadata>``: the policy only, since the pins are libvirt's own elements."""
    policy = plan.spec.isolation
    vm = etree.Element(f"{{{NAMESPACE}}}vm", nsmap={"kvmhooks": NAMESPACE})
    said = {"exclusive": yes_no(policy.exclusive), "strict": yes_no(policy.strict)}
    if plan.idle:
        said["siblings"] = "idle"
    etree.SubElement(vm, f"{{{NAMESPACE}}}isolation", said)
    said = device_settings(plan, driver=LIBVIRT)
    if said:
        devices = {name.removeprefix("devices."): value for name, value in said.items()}
        etree.SubElement(vm, f"{{{NAMESPACE}}}devices", devices)
    return [element("metadata", children=[vm])]
