"""``<os>``: the machine type, the firmware, and a kernel given directly."""

from __future__ import annotations

from kvmhooks.machine.element import Element, element
from kvmhooks.machine.firmware import firmware_of
from kvmhooks.placement.model import Plan


def elements(plan: Plan) -> list[Element]:
    """Return the machine's kind and what it starts."""
    boot = plan.spec.boot
    kind = element("type", {"arch": "x86_64", "machine": plan.spec.machine.type}, text="hvm")
    children = [kind]
    firmware = firmware_of(plan.spec)
    if firmware is not None:
        secure = "yes" if boot.secure_boot else None
        loader = {"readonly": "yes", "secure": secure, "type": "pflash"}
        children.append(element("loader", loader, text=firmware.code))
        store = {"template": firmware.template}
        children.append(element("nvram", store, text=firmware.variables))
    elif boot.firmware != "bios":
        loader = {"readonly": "yes", "type": "rom"}
        children.append(element("loader", loader, text=boot.firmware))
    given = {"kernel": boot.kernel, "initrd": boot.initrd, "cmdline": boot.cmdline}
    children += [element(tag, text=value) for tag, value in given.items() if value is not None]
    if boot.menu:
        children.append(element("bootmenu", {"enable": "yes"}))
    return [element("os", children=children)]
