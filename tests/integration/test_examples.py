"""The examples: each is right, fits a host that has what it asks for, and starts where it can."""

from __future__ import annotations

import subprocess
import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import pytest

from kvmhooks.host import Host, read
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Target, plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import load_vm
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.spec.schema import schema
from tests.fakedevices import FakePci
from tests.fakehost import write_host
from tests.golden.cases import HOSTS
from tests.integration.components import Launcher
from tests.schemas import flaws

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL = sorted(EXAMPLES.glob("*.toml"))
ANYWHERE = ["general", "edge", "cloud"]
"""Those that start on any machine, once their files are elsewhere."""
ROOMY = {"memory_mib": 131_072, "hugepages": {2048: (16_384, 16_384)}, "isolated": ""}


@cache
def host() -> Host:
    """An EPYC with a GPU and a card that has virtual functions."""
    pci = (
        FakePci("0000:01:00.0", class_="0x030000", iommu_group=2),
        FakePci("0000:01:00.1", class_="0x040300", iommu_group=2),
        FakePci("0000:41:00.0", iommu_group=9, total_vfs=8, offset=16, stride=1, driver="igb",
                net=("enp65s0f0",)),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), **{**HOSTS["chiplets"], **ROOMY, "pci": pci}))


def test_every_profile_has_its_example() -> None:
    """By its name."""
    named = {tomllib.loads(file.read_text()).get("profile") for file in ALL}
    assert named >= set(PROFILES)


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_an_example_is_right_and_fits(file: Path) -> None:
    """It is valid by the schema, is planned for the oldest and the newest, and its XML is valid."""
    jsonschema.validate(tomllib.loads(file.read_text()), schema())
    oldest, newest = Target(), Target(qemu=(10, 1), libvirt=None)
    assert flaws(domain_xml(plan(load_vm(file), host(), target=oldest))) == []
    argv = qemu_argv(plan(load_vm(file), host(), target=newest))
    assert f"guest={file.stem},debug-threads=on" in argv


@pytest.mark.parametrize("name", ANYWHERE)
def test_an_example_starts(launcher: Launcher, name: str) -> None:
    """Its images are made, and QEMU runs it until its time is over, in its firmware."""
    text = (EXAMPLES / f"{name}.toml").read_text().replace("/var/lib/vm/", f"{launcher.base}/")
    (launcher.base / f"{name}.toml").write_text(f"{text}\n[shutdown]\ntimeout = 1\n")
    (launcher.base / "cloud-user-data.yaml").write_text("#cloud-config\n")
    base = launcher.base / "debian-13-genericcloud-amd64.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
    ran = launcher.run("--accel", "tcg", "--timeout", "2", launcher.base / f"{name}.toml")
    assert "state: running" in ran.stdout, ran.stderr
    assert ran.returncode == 3  # a firmware does not power off
    assert launcher.left_behind() == []
