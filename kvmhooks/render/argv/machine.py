"""Who the machine is, what kind it is, and what runs it."""

from __future__ import annotations

from kvmhooks.placement.model import Plan


def arguments(plan: Plan) -> list[str]:
    """The name (threads are named for what they do), the machine, the accelerator, the sandbox."""
    accel = "tcg,thread=multi" if plan.accel == "tcg" else plan.accel
    return [
        *("-name", f"guest={plan.name},debug-threads=on"),
        *("-uuid", plan.uuid),
        *("-machine", f"{plan.spec.machine.type},usb=off"),
        *("-accel", accel),
        *("-no-user-config", "-nodefaults"),
        *("-display", "none"),
        *("-rtc", "base=utc"),
        *("-sandbox", _sandbox(plan)),
    ]


def _sandbox(plan: Plan) -> str:
    """System calls that QEMU has no use for are denied (``-sandbox`` in QEMU's invocation page).

    A bridged interface is made by the setuid helper ``qemu-bridge-helper``, which QEMU starts.
    """
    needs_helper = any(net.type == "bridge" for net in plan.spec.net)
    spawn = "allow" if needs_helper else "deny"
    return f"on,obsolete=deny,elevateprivileges={spawn},spawn={spawn},resourcecontrol=deny"
