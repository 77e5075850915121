"""Small devices: everything else does without the file of one, and no VM loads what it has not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvmhooks.spec.device import FOLDER
from kvmhooks.spec.present import DEVICES
from tests.golden.cases import CASES, HERE, golden_vm

TAKEN = """
import sys
from importlib.abc import MetaPathFinder

class Taken(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            raise ImportError(f"{name} is taken away")

sys.meta_path.insert(0, Taken())
"""
"""A program's start with one module that nobody can import."""

RENDER_ALL = (
    TAKEN
    + """
import importlib
import pkgutil

import kvmhooks
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.show.shell import command_line
from tests.golden.cases import HERE, golden_plan

for module in pkgutil.walk_packages(kvmhooks.__path__, "kvmhooks."):
    if module.name not in {sys.argv[1], "kvmhooks.__main__", "kvmhooks.isolate.hook.__main__"}:
        importlib.import_module(module.name)
for case in sys.argv[2:]:
    plan = golden_plan(*case.split("@"))
    expected = HERE / "expected"
    assert command_line(qemu_argv(plan)) == (expected / f"{case}.argv").read_text(), case
    if plan.hardware.target.libvirt is not None:
        xml = domain_xml(plan)
        assert xml == (expected / f"{case}.xml").read_text(), case
        read_domain(xml)
"""
)


@pytest.mark.parametrize("name", DEVICES)
def test_all_else_does_without_it(name: str) -> None:
    """With a device's file taken away everything else is imported, and a VM that has no such device
    is planned, written down for both and read back as ever. Each device has a quarter of the VMs.
    """
    cases = [f"{vm}@{host}" for vm, host in CASES if name not in _tables_of(vm)]
    cases = cases[[*DEVICES].index(name) % 4 :: 4]
    assert len(cases) > 5
    words = [sys.executable, "-c", RENDER_ALL, f"{FOLDER}.{name}", *cases]
    subprocess.run(words, check=True, cwd=HERE.parents[1])


def _tables_of(vm: str) -> set[str]:
    """Return the devices that a golden VM has a table of, or that follow from one."""
    spec = golden_vm(vm)
    given = {name for name in DEVICES if getattr(spec, name)}
    return given | {name for name, how in DEVICES.items() if given & {*how.implied_by}}


def test_none_is_loaded_for_a_vm_without() -> None:
    """A plain VM's arguments load no device at all, and another one's only its own."""
    program = """
import sys
from pathlib import Path
from kvmhooks.placement import plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import parse_vm
from tests.golden.cases import golden_host
text = 'name = "a"\\ncpu.vcpus = 1\\nmemory.size = "1GiB"\\n' + sys.argv[1]
qemu_argv(plan(parse_vm(text, folder=Path("/")), golden_host("laptop")))
print(*sorted(name for name in sys.modules if name.startswith("kvmhooks.machine.devices.")))
"""
    loaded = {}
    for text in ("", 'watchdog.model = "i6300esb"'):
        run = subprocess.run(
            [sys.executable, "-c", program, text],
            check=True,
            capture_output=True,
            text=True,
            cwd=HERE.parents[1],
        )
        loaded[text] = {name.removeprefix(f"{FOLDER}.") for name in run.stdout.split()}
    assert loaded == {"": {"device"}, 'watchdog.model = "i6300esb"': {"device", "watchdog"}}
