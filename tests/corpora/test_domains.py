"""Domains that are there already, those of our own making and those of ``--corpus``: tuned.

Nothing of them is lost. What is compared is read by lxml, which the code that is tested does not
use.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmhooks.errors import KvmhooksError, PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.tuning.tune import CONCERNS, Tuned, tune
from kvmhooks.spec import parse_vm
from kvmhooks.spec.profiles import PROFILES
from tests.fakehost import LARGE_SERVER, write_host
from tests.laws.strategies import hosts
from tests.schemas import flaws

OWN = sorted((Path(__file__).parents[1] / "golden" / "domains").glob("*.xml"))
EXPECTED = Path(__file__).parents[1] / "golden" / "tuned"


@cache
def server() -> Host:
    """A host that is large enough for every domain of our own making."""
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), **LARGE_SERVER))


def test_the_domains_exercise_every_device() -> None:
    """Among our own domains is every kind of device that libvirt's schema of 9.0 names for x86."""
    seen = {str(each.tag) for file in OWN for each in etree.parse(file).iterfind("devices/*")}
    named = {
        "emulator", "disk", "controller", "lease", "filesystem", "interface", "smartcard", "serial",
        "parallel", "console", "channel", "input", "tpm", "graphics", "sound", "audio", "video",
        "hostdev", "redirdev", "hub", "watchdog", "memballoon", "rng", "panic", "shmem", "memory",
        "iommu", "vsock",
    }  # fmt: skip
    assert named <= seen
    assert len(OWN) >= 20


def test_a_domain_is_tuned_and_keeps_everything(
    domain_file: Path, request: pytest.FixtureRequest
) -> None:
    """It is as valid as before, has every element, attribute, comment and text, and tuning it
    again changes nothing; of our own domains, the result is the one on file."""
    before = domain_file.read_bytes()
    try:
        tuned = tune(before, server(), name=domain_file.name)
    except (PlanError, SpecError) as error:
        # Another hypervisor or architecture, or more than the server has: said in one message.
        if domain_file in OWN:
            raise
        pytest.skip(str(error).replace("\n", "; "))
    assert_keeps(before, tuned)
    assert tuned.document != before or not tuned.changes
    assert tune(tuned.document, server()).changes == ()
    assert tune(tuned.document, server()).document == tuned.document
    if domain_file in OWN:
        expected = EXPECTED / domain_file.name
        if request.config.getoption("--regen"):
            expected.write_bytes(tuned.document)
        assert tuned.document == expected.read_bytes()


def test_there_is_no_result_without_its_domain() -> None:
    """Every file of a tuned domain belongs to a domain."""
    assert [file.name for file in sorted(EXPECTED.iterdir())] == [file.name for file in OWN]


def test_a_domain_is_imported(domain_file: Path) -> None:
    """Each is read to a spec, and whatever that cannot say is named by its place."""
    try:
        read = read_domain(domain_file.read_bytes(), domain_file.name)
    except KvmhooksError:
        if domain_file in OWN:
            raise
        return
    assert parse_vm(read.toml, folder=Path("/")) == read.spec
    assert all(left.at and left.why for left in read.unexpressed + read.decided)


@settings(max_examples=150)
@given(
    st.sampled_from(OWN),
    hosts,
    st.sets(st.sampled_from(sorted(CONCERNS)), min_size=1),
    st.booleans(),
    st.none() | st.sampled_from(sorted(PROFILES)),
)
def test_tuning_twice_is_tuning_once(
    file: Path,
    host: Host,
    only: set[str],
    keep_pins: bool,  # noqa: FBT001 -- drawn
    profile: str | None,
) -> None:
    """On any small host, for any concerns and profile, with and without the pins that are there."""
    before = file.read_bytes()
    try:
        tuned = tune(before, host, only=only, keep_pins=keep_pins, profile=profile)
    except (PlanError, SpecError):
        return
    again = tune(tuned.document, host, only=only, keep_pins=keep_pins, profile=profile)
    assert again.changes == ()
    assert again.document == tuned.document
    assert_keeps(before, tuned)
    assert {change.concern for change in tuned.changes} <= only
    if keep_pins:
        pins = [etree.fromstring(each).findall("cputune/vcpupin") for each in
                (before, tuned.document)]  # fmt: skip
        assert not pins[0] or [dict(pin.attrib) for pin in pins[0]] == [
            dict(pin.attrib) for pin in pins[1]
        ]


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"confidential"}))
def test_a_profile_speaks_where_the_domain_does_not(domain_file: Path, profile: str) -> None:
    """Nothing of the domain is lost, the result is as valid as it was, and it is stable."""
    if domain_file not in OWN:
        pytest.skip("of other people's domains one tuning is enough")
    before = domain_file.read_bytes()
    try:
        tuned = tune(before, server(), profile=profile)
    except (PlanError, SpecError):
        if profile != "realtime":  # it asks for whole cores and pages of 1 GiB
            raise
        return
    assert_keeps(before, tuned)
    assert tune(tuned.document, server(), profile=profile).changes == ()


REALTIME = [
    ("metadata/kvmhooks:vm", None, "<kvmhooks:vm xmlns:kvmhooks='urn:kvmhooks:1'/>"),
    (
        "metadata/kvmhooks:vm/kvmhooks:isolation",
        None,
        "<kvmhooks:isolation exclusive='yes' strict='no' siblings='idle' watchdog='yes'/>",
    ),
    (
        "metadata/kvmhooks:vm/kvmhooks:power",
        None,
        "<kvmhooks:power governor='performance' latency='n/a'/>",
    ),
    (
        "metadata/kvmhooks:vm/kvmhooks:memory",
        None,
        "<kvmhooks:memory thp='never' numa_balancing='0' stat_interval='120'/>",
    ),
    (
        "metadata/kvmhooks:vm/kvmhooks:kernel",
        None,
        "<kvmhooks:kernel rt_runtime='-1' timer_migration='0'/>",
    ),
    ("memoryBacking/hugepages/page", None, "<page size='1048576' unit='KiB'/>"),
    ("memoryBacking/nosharepages", None, "<nosharepages/>"),
    ("memoryBacking/locked", None, "<locked/>"),
    ("memoryBacking/source", None, "<source type='memfd'/>"),
    ("memoryBacking/allocation", None, "<allocation mode='immediate'/>"),
    ("cputune/vcpusched", None, "<vcpusched vcpus='0' scheduler='fifo' priority='1'/>"),
    ("features/pmu", None, "<pmu state='off'/>"),
    ("devices/rng", None, "<rng model='virtio'/>"),
    ("devices/rng/backend", None, "<backend model='random'>/dev/urandom</backend>"),
    (
        "qemu:commandline",
        None,
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'/>",
    ),
    ("qemu:commandline/qemu:arg", None, "<qemu:arg value='-overcommit'/>"),
    ("qemu:commandline/qemu:arg", None, "<qemu:arg value='cpu-pm=on'/>"),
]


def test_what_a_profile_adds_is_what_it_says() -> None:
    """The realtime profile on a domain of few words: each change of its own, and no other.

    Without a place of its own the domain gets no word that needs one, and is told which.
    """
    minimal = OWN[0].with_name("minimal.xml").read_bytes()
    placed = tune(minimal, server(), only={"profile", "cpu"}, profile="realtime")
    changes = [change for change in placed.changes if change.concern == "profile"]
    assert [(change.at, change.before, change.after) for change in changes] == REALTIME
    assert {change.why for change in changes} == {"profile realtime"}
    tuned = tune(minimal, server(), only={"profile"}, profile="realtime")
    needs = ("metadata", "cputune", "qemu:commandline")
    assert [(change.at, change.before, change.after) for change in tuned.changes] == [
        change for change in REALTIME if not change[0].startswith(needs)
    ]
    words = "cpu.placement, cpu.smt, isolation.exclusive, cpu.realtime, cpu.cpu_pm, policy"
    why = "these need CPUs that are chosen for them, and its pins stay"
    assert tuned.advice == (f"profile realtime: {words} left out: {why}",)


def test_a_domains_own_words_win_over_a_profile() -> None:
    """A domain's own words stay, be it the same thing in other words."""
    xml = """<domain type='kvm'><name>own</name><memory unit='GiB'>2</memory><vcpu>2</vcpu>
      <memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages></memoryBacking>
      <os><type arch='x86_64' machine='q35'>hvm</type></os>
      <features><pmu state='on'/></features>
      <devices><rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng></devices>
      </domain>"""
    tuned = tune(xml, server(), only={"profile"}, profile="realtime")
    assert not {"features/pmu@state", "memoryBacking/hugepages/page", "devices/rng"} & {
        change.at for change in tuned.changes
    }
    assert "memoryBacking/nosharepages" in {change.at for change in tuned.changes}
    assert_keeps(xml.encode(), tuned)


def test_a_tuned_domain_can_have_its_cpus_alone() -> None:
    """The hook takes the claim of a domain that asks for exclusive CPUs, once it is tuned."""
    realtime = OWN[0].with_name("realtime.xml").read_bytes()
    claim = read_claim(tune(realtime, server()).document)
    assert claim is not None
    assert str(claim.exclusive) == "1-2,17-18"


def assert_keeps(before: bytes, tuned: Tuned) -> None:
    """The tuned domain is at least as valid, and has all that the domain had."""
    if not flaws(before):
        assert flaws(tuned.document) == []
    assert_has(etree.fromstring(tuned.document), etree.fromstring(before))
    changed = [change for change in tuned.changes if change.before is not None]
    if not changed:
        rest = iter(tuned.document)
        assert all(byte in rest for byte in before), "bytes are gone or changed"


def assert_has(after: Any, before: Any) -> None:
    """An element has each child, attribute and text that another has, in the same order."""
    assert after.tag == before.tag
    if before.tag is etree.Comment or before.tag is etree.PI:
        assert after.text == before.text
        return
    assert set(before.attrib) <= set(after.attrib)
    assert before.nsmap.items() <= after.nsmap.items()
    assert _text(before) == _text(after)
    candidates = iter(after)
    for child in before:
        found = next((each for each in candidates if _is_same(each, child)), None)
        assert found is not None, etree.tostring(child)
        assert_has(found, child)


def _is_same(element: Any, other: Any) -> bool:
    if element.tag != other.tag:
        return False
    if not isinstance(element.tag, str):
        return bool(element.text == other.text)
    return set(other.attrib) <= set(element.attrib)


def _text(element: Any) -> str:
    return "".join([element.text or "", *(child.tail or "" for child in element)]).strip()
