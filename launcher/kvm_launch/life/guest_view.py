"""The guest's view of a VM: what must not change while it runs, and what keeps it where it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from kvmhooks.errors import LaunchError, Problem
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec.forms import Number
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import devices_of

_SEEN: Final = frozenset(
    {"-accel", "-cpu", "-device", "-global", "-m", "-machine", "-numa", "-rtc", "-smbios", "-smp",
     "-uuid"}
)  # fmt: skip
"""Options of which a guest sees something; all others are the host's part."""


def obstacles(spec: VmSpec) -> Iterator[Problem]:
    """Yield what keeps a VM where it is: there is only one of it, or its state is not QEMU's."""
    expected = "nothing that is bound to one QEMU of this host"
    there = {
        "pci": bool(spec.pci),
        "nvme": bool(spec.nvme),
        "mdev": bool(spec.mdev),
        "helper": bool(spec.helper),
        "security.type": spec.security.type != "none",
    }
    there |= {each.key: True for each in devices_of(spec) if not each.device.can_migrate}
    for at, is_there in there.items():
        if is_there:
            yield Problem(at, "a VM that has it", expected)
    for index, net in enumerate(spec.net):
        if net.type not in {"user", "bridge"}:
            yield Problem(f"net[{index}].type", f'"{net.type}"', '"user" or "bridge", to migrate')


def guest_view(plan: Plan) -> list[str]:
    """Return QEMU's options of which the guest sees something, as lines."""
    words = qemu_argv(plan)[1:]
    return [f"{option} {value}" for option, value in _pairs(words) if option in _SEEN]


def check_same(here: Sequence[str], there: Sequence[str]) -> None:
    """Raise ``LaunchError`` with the first thing that the guest would see change."""
    for ours in here:
        if ours not in there:
            near = [line for line in there if line.partition(" ")[0] == ours.partition(" ")[0]]
            found = next((line for line in near if line not in here), "nothing like it")
            raise LaunchError(f"its guest has {found!r}, expected {ours!r}, as this plan has it")
    if missing := [line for line in there if line not in here]:
        raise LaunchError(f"its guest has {missing[0]!r}, which this plan has not")


def with_vcpus(plan: Plan, count: int) -> Plan:
    """Return a plan of which ``count`` vCPUs are there."""
    spec = plan.spec
    return attrs.evolve(
        plan, spec=attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, current=Number(count)))
    )


def vcpus_in(smp: str) -> int:
    """Return how many vCPUs a line of ``-smp`` has from the start; 0 where it does not say."""
    found = re.match(r"-smp (\d{1,4}),", smp)
    return int(found[1]) if found else 0


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values; an option without one has an empty value."""
    for at, word in enumerate(words):
        if word.startswith("-"):
            value = words[at + 1] if at + 1 < len(words) else ""
            yield word, "" if value.startswith("-") else value
