"""One plan, written down: as a libvirt domain XML, as QEMU's arguments, as a picture.

Renderers decide nothing. Each concern is one small module, named in a flat ordered list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmhooks.render.argv import qemu_argv

if TYPE_CHECKING:
    from kvmhooks.placement.model import Plan

__all__ = ["domain_xml", "qemu_argv"]


def domain_xml(plan: Plan) -> str:
    """The libvirt domain XML of ``plan`` (https://libvirt.org/formatdomain.html)."""
    from kvmhooks.render.domain import render  # noqa: PLC0415 -- only this one needs lxml

    return render(plan)
