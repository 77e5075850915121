"""One vocabulary: vm.toml, metadata, the administrator's files and claims say the same settings.

Every row of the table is drawn, in a VM's own words and in the administrator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmhooks.errors import IsolationError, PlanError
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.system.system import System
from kvmhooks.libvirt.edit.toml import to_toml
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, claim, plan, to_json
from kvmhooks.policy import SETTINGS, from_toml
from kvmhooks.show.plan_text import picture
from kvmhooks.spec import VmSpec
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.schema import schema
from kvmhooks.spec.structure import structure
from kvmhooks.spec.tuning import policy_of
from tests.golden.cases import golden_host
from tests.laws.strategies import placements, setting_values, settings_tables

OWN = [name for name, setting in SETTINGS.items() if not setting.word]
"""The settings that vm.toml has below ``policy``."""

NAME = "vm"
HOST = "/etc/kvmhooks/kvmhooks.toml"


@st.composite
def asking(draw: st.DrawFn) -> VmSpec:
    """A VM that asks for some settings, each where it does something."""
    placement = draw(st.sampled_from(["dedicated", "dedicated", "shared"]))
    document = draw(placements(placement=placement, exclusive=placement == "dedicated"))
    if draw(st.booleans()):
        del document["isolation"]
    document["disk"] = [*document["disk"], {"path": "/dev/vg0/a"}, {"path": "/dev/vg0/b"}]
    if placement == "dedicated":
        document["tuning"] = draw(
            st.just({})
            | st.just({"vcpus": {"scheduler": "fifo", "priority": 7}})
            | st.just({"vcpus": {"scheduler": "batch"}})
        )
    has_own = document.get("isolation", {}).get("exclusive", False)
    has_pages = "hugepages" in document["memory"]
    met = {"": True, "isolation.exclusive": has_own, "memory.hugepages": has_pages}
    document["policy"] = draw(settings_tables(n for n in OWN if met[SETTINGS[n].needs]))
    spec = structure(document, Path("/vms"))
    assume(not list(inconsistencies(spec, document)))
    return spec


FILES = st.none() | settings_tables(SETTINGS)


@contextmanager
def host_with(defaults: Any, own: Any) -> Iterator[tuple[System, Inventory]]:
    """A host whose administrator says so, as the hook reads it and as a plan has it."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / administrator.VMS).mkdir(parents=True)
        for path, tables in ((administrator.HOST, defaults), (administrator.file_of(NAME), own)):
            if tables is not None:
                (root / path).write_text(to_toml(tables))
        system = System(folder)
        settings = administrator.policy_of(system, NAME)
        yield (
            system,
            Inventory(
                host=golden_host("server"),
                defaults=administrator.defaults(system),
                policies={} if settings is None else {NAME: settings},
            ),
        )


@given(asking(), FILES, FILES)
def test_the_hook_reads_the_claim_of_the_plan(spec: VmSpec, defaults: Any, own: Any) -> None:
    """From vm.toml, the administrator's files under it, libvirt's claim and the XML's are one.

    kvm-launch's has the same settings, but for what libvirt does itself.
    """
    with host_with(defaults, own) as (system, inventory):
        decided = _planned(spec, inventory)
        by_libvirt = claim(decided, driver="qemu")
        assert read_claim(domain_xml(decided), system=system) == by_libvirt
        launched = claim(decided)
        assert _settings(launched) == _settings(by_libvirt)
        assert (launched.strict, launched.disks) == (by_libvirt.strict, by_libvirt.disks)
        assert launched.demands == by_libvirt.demands
        assert launched.exclusive == by_libvirt.exclusive


def _settings(made: Claim) -> dict[str, str]:
    """Return the settings but the class of vCPUs, which libvirt sets, and who binds devices."""
    apart = {"threads.vcpus", "devices.managed"}
    return {name: value for name, value in made.settings if name not in apart}


def _planned(spec: VmSpec, inventory: Inventory) -> Plan:
    try:
        return plan(spec, inventory)
    except PlanError:
        assume(condition=False)
        raise


@given(asking())
def test_import_reads_every_setting_back(spec: VmSpec) -> None:
    """The domain of a VM is read as one that asks for the same."""
    decided = _planned(spec, Inventory(host=golden_host("server")))
    read = read_domain(domain_xml(decided))
    assert read.unexpressed == ()
    assert read.spec.policy == spec.policy
    assert read.spec.isolation == decided.spec.isolation


@given(st.data())
def test_what_vm_toml_says_is_what_metadata_may_say(data: st.DataObject) -> None:
    """A value of TOML is one of the metadata, and comes back from there."""
    setting = SETTINGS[data.draw(st.sampled_from(sorted(SETTINGS)))]
    value = data.draw(setting_values(setting))
    text = from_toml(value)
    assert setting.allows(text)
    assert from_toml(setting.to_toml(text)) == text


@pytest.mark.parametrize("name", [name for name, row in SETTINGS.items() if row.numbers])
def test_a_number_is_bounded_alike(name: str) -> None:
    """The bounds of vm.toml's numbers are those of the metadata's texts."""
    setting = SETTINGS[name]
    assert setting.numbers is not None
    least, most = setting.numbers
    assert [setting.allows(str(number)) for number in (least, most)] == [True, True]
    assert [setting.allows(str(number)) for number in (least - 1, most + 1)] == [False, False]


def test_every_row_has_one_key_of_vm_toml() -> None:
    """Its own below ``policy``, or the one that the row names; the schema has no others."""
    policy = schema()["properties"]["policy"]["properties"]
    keys = {f"{group}.{key}" for group, table in policy.items() for key in table["properties"]}
    assert keys == set(OWN)
    for setting in SETTINGS.values():
        table = schema()
        for step in filter(None, setting.word.split(".")):
            table = table["properties"][step.removesuffix("[]")]
            table = table["items"] if step.endswith("[]") else table
        assert not setting.word or "description" in table


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_ways_of_caches_are_in_both_claims(ways: int) -> None:
    """libvirt's VM has the same parts of caches by its plan and by its XML."""
    document = {
        "name": NAME,
        "cpu": {"vcpus": 2, "placement": "dedicated"},
        "memory": {"size": "1GiB"},
        "isolation": {"exclusive": True, "cache_ways": ways},
    }
    decided = plan(structure(document, Path("/vms")), golden_host("divided"))
    found = claim(decided, driver="qemu")
    assert found.caches
    assert read_claim(domain_xml(decided)) == found


def test_the_administrator_is_asked_in_the_hooks_order() -> None:
    """The VM's own words, then its file, then the host's: each setting with its file."""
    defaults = {"memory": {"thp": "never", "ksm": 0}, "kernel": {"halt_poll": 1}}
    own = {"memory": {"thp": "always", "ksm": 1}}
    document = {
        "name": NAME, "cpu": {"vcpus": 1}, "memory": {"size": "1GiB"},
        "policy": {"memory": {"thp": "madvise"}},
    }  # fmt: skip
    spec = structure(document, Path("/vms"))
    with host_with(defaults, own) as (_, inventory):
        decided = plan(spec, inventory)
    assert dict(claim(decided).settings) == {
        "memory.thp": "madvise", "memory.ksm": "1", "kernel.halt_poll": "1",
    }  # fmt: skip
    own_file = "/etc/kvmhooks/vm.d/vm.toml"
    assert to_json(decided)["settings"] == {
        "memory.thp": {"value": "madvise", "from": "vm.toml"},
        "memory.ksm": {"value": "1", "from": own_file},
        "kernel.halt_poll": {"value": "1", "from": HOST},
    }
    assert claim(decided).origins == (("kernel.halt_poll", HOST), ("memory.ksm", own_file))
    assert [line for line in picture(decided).splitlines() if line.startswith("asks")] == [
        "asks by vm.toml: memory.thp madvise",
        f"asks by {own_file}: memory.ksm 1",
        f"asks by {HOST}: kernel.halt_poll 1",
    ]


def test_what_decides_the_place_is_said_of_the_administrators_file() -> None:
    """CPUs of a VM's own, and siblings that stay idle, are planned as if its file said so."""
    document = {
        "name": NAME, "cpu": {"vcpus": 2, "placement": "dedicated"}, "memory": {"size": "1GiB"},
    }  # fmt: skip
    defaults = {"isolation": {"exclusive": True, "siblings": "idle"}}
    with host_with(defaults, {"isolation": {"strict": True}}) as (_, inventory):
        decided = plan(structure(document, Path("/vms")), inventory)
    assert (len(decided.exclusive), decided.spec.cpu.smt) == (2, "isolate")
    assert claim(decided).strict
    assert decided.why[:3] == (
        f"isolation.exclusive is yes: {HOST} says so",
        "isolation.strict is yes: /etc/kvmhooks/vm.d/vm.toml says so",
        f"isolation.siblings is idle: {HOST} says so",
    )


def test_a_vms_own_class_comes_before_the_administrators() -> None:
    """libvirt has it in <vcpusched>; so the metadata has it too where a file says another one."""
    document = {
        "name": NAME,
        "cpu": {"vcpus": 2, "placement": "dedicated"},
        "memory": {"size": "1GiB"},
        "isolation": {"exclusive": True},
        "tuning": {"vcpus": {"scheduler": "fifo", "priority": 7}},
    }
    spec = structure(document, Path("/vms"))
    with host_with({"threads": {"vcpus": "fifo:1"}}, None) as (system, inventory):
        decided = plan(spec, inventory)
        found = read_claim(domain_xml(decided), system=system)
    assert found == claim(decided, driver="qemu")
    assert found is not None
    assert found.setting("threads.vcpus") == claim(decided).setting("threads.vcpus") == "fifo:7"


REFUSED = [
    (
        {"isolation": {"exclusive": True}},
        {},
        (
            f'cpu.placement: found "shared", and isolation.exclusive in {HOST}, '
            'expected "dedicated", or isolation.exclusive = false'
        ),
    ),
    (
        {"threads": {"vcpus": "fifo:1"}},
        {},
        (
            f"isolation.exclusive: found false, and threads.vcpus fifo:1 in {HOST}, "
            "expected true: any task on a CPU of such a vCPU would starve"
        ),
    ),
    (
        {"memory": {"hugepages": "keep"}},
        {"memory": {"size": "1GiB", "hugepages": "2MiB", "allocate": True}},
        (
            f"memory.allocate: found true, and memory.hugepages keep in {HOST}, "
            'expected false, or policy.memory.hugepages = "allocate"'
        ),
    ),
]


@pytest.mark.parametrize(("defaults", "own", "message"), REFUSED)
def test_what_the_hook_would_refuse_is_not_planned(defaults: Any, own: Any, message: str) -> None:
    """The file and the word that contradicts it are named; the VM's own word has the say."""
    document = {"name": NAME, "cpu": {"vcpus": 1}, "memory": {"size": "1GiB"}} | own
    with host_with(defaults, None) as (_, inventory):
        with pytest.raises(PlanError) as caught:
            plan(structure(document, Path("/vms")), inventory)
        assert str(caught.value) == message
        spec = structure(document, Path("/vms"))
        if "isolation" in defaults:
            free = attrs.evolve(spec, isolation=attrs.evolve(spec.isolation, exclusive=False))
            assert plan(free, inventory).exclusive.mask == 0


def test_a_mistake_of_the_administrators_is_told() -> None:
    """It names the file and the key, as the hook does."""
    wrong = host_with({"memory": {"ksm": 7}}, None)
    with pytest.raises(IsolationError, match=r"kvmhooks.toml: memory.ksm: found '7'"), wrong:
        raise AssertionError


def test_a_vm_says_its_settings_as_claims_have_them() -> None:
    """True and false become yes and no, numbers texts; what is not said is not there."""
    document = {
        "name": NAME, "cpu": {"vcpus": 1}, "memory": {"size": "1GiB"},
        "policy": {"power": {"boost": False}, "memory": {"ksm": 0}},
    }  # fmt: skip
    assert policy_of(structure(document, Path("/vms"))) == {
        "power.boost": "no", "memory.ksm": "0",
    }  # fmt: skip
