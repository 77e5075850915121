"""One function takes an inventory: whoever else gathered one would plan on something else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SURVEY = ROOT / "kvmhooks/survey"

GATHERED = {
    "kvmhooks.host.read": "the host as plans look at it",
    "kvmhooks.placement.plan.parts_of": "which parts of a host a plan looks at",
    "kvmhooks.placement.parts_of": "which parts of a host a plan looks at",
    "kvmhooks.host.PLANNED": "which parts of a host a plan looks at",
    "kvmhooks.host.model.PLANNED": "which parts of a host a plan looks at",
    "kvmhooks.inventory.usage.of_claim": "the holdings of claims",
    "kvmhooks.inventory.usage.of_pins": "the holdings of running domains",
    "kvmhooks.survey.running": "the holdings of VMs",
    "kvmhooks.survey.domains": "the holdings of domains",
    "kvmhooks.survey.records": "the holdings of kvm-launch's VMs",
    "kvmhooks.survey.administrator": "the administrator's limits",
    "kvmhooks.survey.programs_here": "the programs that run a VM",
    "kvmhooks.kvm.verdict": "the verdict on KVM",
    "kvmhooks.kvm.cpus": "QEMU's answers under KVM",
}
"""The parts of an inventory, by the names that whoever gathers one imports."""

MAY = {
    "kvmhooks/__init__.py": {"kvmhooks.host.read"},  # as a public name
    "kvmhooks/devices/listing.py": {"kvmhooks.host.read"},  # shows them
    "kvmhooks/cli/host.py": {"kvmhooks.host.read"},  # shows it
    "kvmhooks/host/__init__.py": {"kvmhooks.host.read", "kvmhooks.host.model.PLANNED"},
    "kvmhooks/host/capture.py": {"kvmhooks.host.read"},  # keeps it
    "kvmhooks/inventory/inventory.py": {"kvmhooks.inventory.usage.of_claim"},  # claims given beside
    "kvmhooks/kvm/probe.py": {"kvmhooks.kvm.verdict"},  # makes it
    "kvmhooks/kvm/cpus.py": {"kvmhooks.kvm.verdict"},  # is kept in the same way
    "kvmhooks/placement/__init__.py": {"kvmhooks.placement.plan.parts_of"},  # as a public name
    "kvmhooks/placement/plan.py": {"kvmhooks.host.model.PLANNED"},  # says which parts
}
"""File: what of that it imports for another purpose than a plan."""

PRODUCT = sorted(
    path for top in ("kvmhooks", "launcher/kvm_launch") for path in (ROOT / top).rglob("*.py")
)


def imports(tree: ast.AST) -> Iterator[str]:
    """The names that a module imports, each with those of the packages that it is of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[str]:
    """The plain names of functions and classes that a module calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


@pytest.mark.parametrize(
    "path",
    [path for path in PRODUCT if not path.is_relative_to(SURVEY)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nobody_else_gathers_one(path: Path) -> None:
    """Neither its parts nor the whole: not outside of the survey."""
    place = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    gathered = {name for name in imports(tree) if name in GATHERED}
    assert gathered == MAY.get(place, set()), f"{place}: take it by kvmhooks.survey.survey.take"
    is_allowed = path == ROOT / "kvmhooks/inventory/inventory.py"  # of a bare host
    assert is_allowed or "Inventory" not in calls(tree), f"{place}: only the survey makes one"


PLANNERS = {
    "plan": ("kvmhooks.placement",),
    "plan_all": ("kvmhooks.placement",),
    "replan": ("kvmhooks.placement", "kvmhooks.libvirt.tuning.replan"),
    "tune": ("kvmhooks.libvirt.tuning.tune",),
    "misfit": ("kvmhooks.libvirt.tuning.replan",),
}
"""The functions that plan."""

COMMANDS = [
    path
    for path in PRODUCT
    if path.is_relative_to(ROOT / "kvmhooks/cli") or path.is_relative_to(ROOT / "launcher")
]


def test_commands_plan_on_an_inventory_alone() -> None:
    """No command gives a plan claims, CPUs for the host or programs beside it."""
    planned = 0
    for path in COMMANDS:
        tree = ast.parse(path.read_text())
        known = {
            name.rpartition(".")[2]: name
            for name in imports(tree)
            if name.rpartition(".")[2] in PLANNERS and name.startswith("kvmhooks.")
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in known or not known[node.func.id].startswith(
                PLANNERS[node.func.id]
            ):
                continue
            planned += 1
            given = {keyword.arg for keyword in node.keywords}
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert len(node.args) == 2, f"{where}: found more than a VM and an inventory"
            assert not given & {"claims", "housekeeping", "target"}, f"{where}: found {given}"
    assert planned >= 8, "no call is seen"
