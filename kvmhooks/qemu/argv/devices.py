"""The small devices, which have a file of their own each, in the order that QEMU wants."""

from __future__ import annotations

from kvmhooks.machine.devices.device import Order
from kvmhooks.placement.model import Plan
from kvmhooks.spec.present import in_order


def arguments(plan: Plan) -> list[str]:
    """Return shared folders, and all others."""
    return of_kind(plan, Order.FOLDER, Order.OTHER)


def iommu(plan: Plan) -> list[str]:
    """Return the guest's IOMMU, which must be there before the devices that it translates for."""
    return of_kind(plan, Order.TRANSLATION)


def channels(plan: Plan) -> list[str]:
    """Return the channels, behind the console's port and the agent's."""
    return of_kind(plan, Order.CHANNEL)


def plugged(plan: Plan) -> list[str]:
    """Return the USB controller before what is plugged into it, and other keyboards and mice."""
    return of_kind(plan, Order.CONTROLLER, Order.PLUGGED)


def screen_and_sound(plan: Plan) -> list[str]:
    """Return the place where sound is heard, the screen, which names it, and the sound card.

    Without a screen QEMU is told so: it would open a window.
    """
    return [
        *before(plan, Order.SOUND),
        *(of_kind(plan, Order.SCREEN) or ["-display", "none"]),
        *of_kind(plan, Order.SOUND),
    ]


def before(plan: Plan, *orders: Order) -> list[str]:
    """Return what devices of some kinds refer to."""
    return [word for each in in_order(plan.spec, *orders) for word in each.device.argv_before()]


def of_kind(plan: Plan, *orders: Order) -> list[str]:
    """Return the devices that have a file of their own, of some kinds."""
    context = plan.device_context
    there = in_order(plan.spec, *orders)
    return [word for each in there for word in each.device.argv(context, each.id)]
