"""The small devices, which have a file of their own each."""

from __future__ import annotations

from kvmhooks.machine.devices.device import Order
from kvmhooks.machine.element import Element
from kvmhooks.placement.model import Plan
from kvmhooks.spec.present import in_order


def devices(plan: Plan) -> list[Element]:
    """Return shared folders, the IOMMU, and all others."""
    return of_kind(plan, Order.FOLDER, Order.TRANSLATION, Order.OTHER)


def channels(plan: Plan) -> list[Element]:
    """Return the channels, behind the console's port and the agent's."""
    return of_kind(plan, Order.CHANNEL)


def desktop(plan: Plan) -> list[Element]:
    """Return what a person sits at: USB with what is plugged into it, the sound, the screen."""
    return of_kind(plan, Order.CONTROLLER, Order.PLUGGED, Order.SOUND, Order.SCREEN)


def of_kind(plan: Plan, *orders: Order) -> list[Element]:
    """Return the devices that have a file of their own, of some kinds."""
    context = plan.device_context
    there = in_order(plan.spec, *orders)
    return [made for each in there for made in each.device.xml(context, each.id)]
