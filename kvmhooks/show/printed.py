"""A plan as the text of what a person asked to see: for ``kvm-launch --print`` and the verbs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from kvmhooks.placement import claim, to_json
from kvmhooks.placement.launchers import KVM_LAUNCH, LIBVIRT, left_out
from kvmhooks.placement.model import Plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.show.shell import command_line


def printed(plan: Plan, what: str, *, as_json: bool = False) -> str:
    """Return ``plan`` as one of ``FORMS``, for people or as JSON, with a final newline."""
    return FORMS[what](plan, as_json)


def _plan(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    from kvmhooks.show.plan_text import picture  # noqa: PLC0415 -- only this form is drawn

    return _text(to_json(plan)) if as_json else picture(plan)


def _argv(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    argv = qemu_argv(plan)
    return _text(argv) if as_json else command_line(argv)


def _xml(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    from kvmhooks.libvirt.xml import domain_xml  # noqa: PLC0415 -- only this form needs lxml

    xml = domain_xml(plan)
    return _text({"xml": xml}) if as_json else xml


def _claim(plan: Plan, _as_json: bool) -> str:  # noqa: FBT001 -- as every form
    """Return the claim, with its pages and functions as programs found them in format 1, too.

    Beside it stands what a claim does not say and other VMs' plans have to know: ``--claims``.
    """
    found = claim(plan).to_json()
    resources = found["resources"]
    bound = [function["address"] for function in resources.get("functions", ())]
    more = {key: value for key, value in of_plan(plan).to_json().items() if key not in found}
    return _text(found | more | {"bound": bound})


def untold(plan: Plan, what: str) -> Iterator[str]:
    """Yield what a form of a plan does not say itself: the plan's warnings.

    Above all that is what is left out, and by libvirt's XML and QEMU's arguments also the keys that
    only the other launcher carries out.
    """
    if what == "plan":
        return
    launcher = {"xml": LIBVIRT, "argv": KVM_LAUNCH}.get(what)
    others = () if launcher is None else left_out(plan.spec, launcher)
    yield from (*plan.warnings, *others)


FORMS: Final[dict[str, Callable[[Plan, bool], str]]] = {
    "argv": _argv,
    "xml": _xml,
    "plan": _plan,
    "claim": _claim,
}
"""The forms of a plan that can be printed; a claim is JSON in any case."""


def _text(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"
