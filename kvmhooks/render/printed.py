"""A plan as the text of what a person asked to see: for ``kvm-launch --print`` and the verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from kvmhooks.placement import claim, to_json
from kvmhooks.placement.model import Plan
from kvmhooks.render.argv import qemu_argv
from kvmhooks.render.picture import picture
from kvmhooks.render.shell import command_line


def printed(plan: Plan, what: str, *, as_json: bool = False) -> str:
    """``plan`` as one of ``FORMS``, for people or as JSON, with a final newline."""
    return FORMS[what](plan, as_json)


def _plan(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    return _text(to_json(plan)) if as_json else picture(plan)


def _argv(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    argv = qemu_argv(plan)
    return _text(argv) if as_json else command_line(argv)


def _xml(plan: Plan, as_json: bool) -> str:  # noqa: FBT001 -- as every form
    from kvmhooks.render import domain_xml  # noqa: PLC0415 -- only this form needs lxml

    xml = domain_xml(plan)
    return _text({"xml": xml}) if as_json else xml


def _claim(plan: Plan, _as_json: bool) -> str:  # noqa: FBT001 -- as every form
    return _text(claim(plan).to_json())


FORMS: Final[dict[str, Callable[[Plan, bool], str]]] = {
    "argv": _argv,
    "xml": _xml,
    "plan": _plan,
    "claim": _claim,
}
"""What can be printed of a plan; a claim is JSON in any case."""


def _text(said: Any) -> str:
    return json.dumps(said, indent=2) + "\n"
