"""A start that the hook lets through is let through with the tuned domain, whatever tune is told.

The hook's own code is asked: the claim is read from the domain, and its start gone through on the
same tree that the host was read from.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as ET

from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import IsolationError, PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.isolate.system.system import System
from kvmhooks.libvirt.tuning.tune import CONCERNS, tune
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.values import CpuSet
from tests.fakehost import FakeHost

PAGES = {2048: (1024, 1024), 1_048_576: (2, 2)}
TREES = [
    FakeHost(cores=4, memory_mib=4096),
    FakeHost(packages=2, cores=4, nodes=2, l3_cores=2, memory_mib=8192, hugepages=PAGES),
    FakeHost(packages=2, cores=4, threads=2, nodes=2, memory_mib=8192, isolated="3,7,11,15"),
]
KVMHOOKS = "urn:kvmhooks:1"
NOVA = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>"


@cache
def tree(at: int) -> tuple[TemporaryDirectory[str], Host]:
    """One of them, written once; the folder goes with the process."""
    folder = TemporaryDirectory(prefix="tuned-start-")
    TREES[at].write(Path(folder.name))
    return folder, read(folder.name, ("cpus", "nodes", "kernel", "kvm", "pci"))


def refusal(document: bytes, root: str) -> str:
    """The hook's reason to refuse the start of a domain; empty for none."""
    try:
        claim = read_claim(document, system=System(root))
        if claim is not None:
            rehearse(claim, root)
    except IsolationError as error:
        return str(error)
    return ""


@st.composite
def domains(draw: st.DrawFn, cpus: int) -> bytes:
    """A domain with pins for all, some or none of its threads, exclusive or not, of any owner."""
    count = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["own", "own", "own", "any", "none", "pool"]))
    chosen = draw(
        st.lists(st.integers(1, cpus - 1), min_size=count, max_size=count, unique=kind == "own")
    )
    sets = [f"1-{cpus - 1}"] * count if kind == "pool" else [str(cpu) for cpu in chosen]
    pins = "" if kind == "none" else "".join(
        f"<vcpupin vcpu='{at}' cpuset='{cpuset}'/>" for at, cpuset in enumerate(sets)
    )  # fmt: skip
    rest = str(CpuSet(range(cpus)) - CpuSet(chosen) or CpuSet((0,)))
    emulator = draw(st.sampled_from(["0", rest, "1", ""]))
    pins += f"<emulatorpin cpuset='{emulator}'/>" if emulator else ""
    iothreads = draw(st.sampled_from(["", "", "<iothreads>1</iothreads>"]))
    if iothreads and draw(st.booleans()):
        pins += "<iothreadpin iothread='1' cpuset='0'/>"
    if draw(st.integers(0, 3)) == 0:
        pins += f"<vcpusched vcpus='0-{count - 1}' scheduler='fifo' priority='1'/>"
    policy = draw(st.sampled_from(["yes", "yes", "no", ""]))
    siblings = draw(st.sampled_from(["", " siblings='idle'"]))
    pages = draw(st.sampled_from([None, "allocate", "present"]))
    allocate = "<k:memory hugepages='allocate'/>" if pages == "allocate" else ""
    words = f"<k:isolation exclusive='{policy}'{siblings}/>" if policy else ""
    metadata = f"<k:vm xmlns:k='{KVMHOOKS}'>{words}{allocate}</k:vm>" if words else ""
    metadata += NOVA if draw(st.integers(0, 4)) == 0 else ""
    nodes = draw(st.sampled_from(["", "", "0", "1", "0-1"]))
    bound = f"<numatune><memory mode='strict' nodeset='{nodes}'/></numatune>" if nodes else ""
    disks = "".join(
        f"<disk type='file'><source file='/{name}.img'/><target dev='{name}' bus='virtio'/></disk>"
        for name in draw(st.sampled_from([(), ("vda",), ("vda", "vdb")]))
    )
    memory = draw(st.sampled_from([512, 1024, 4096]))
    size = "<hugepages><page size='2048' unit='KiB'/></hugepages>"
    backing = f"<memoryBacking>{size}</memoryBacking>" if pages else ""
    return (
        "<domain type='kvm'><name>vm</name><uuid>0b6f3f5e-42b8-4d57-93c1-0f6d8c6a1c02</uuid>"
        f"<metadata>{metadata}</metadata><memory unit='MiB'>{memory}</memory>{backing}"
        f"<vcpu>{count}</vcpu>{iothreads}<cputune>{pins}</cputune>{bound}"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='host-passthrough'/>"
        f"<devices>{disks}</devices></domain>"
    ).encode()


def iothreads_of(root: ET.Element) -> set[str]:
    """The ids of the iothreads by their count, which alone these domains have."""
    return {str(at + 1) for at in range(int(root.findtext("iothreads") or 0))}


@settings(max_examples=120)
@given(st.data())
def test_what_the_hook_lets_start_it_lets_start_tuned(data: st.DataObject) -> None:
    """And every thread of a VM with CPUs of its own that tune adds has its pin."""
    at = data.draw(st.integers(0, len(TREES) - 1))
    folder, host = tree(at)
    root = folder.name
    before = data.draw(domains(len(TREES[at].cpus)))
    everything = st.just(tuple(CONCERNS))
    only = data.draw(everything | st.sets(st.sampled_from(sorted(CONCERNS)), min_size=1))
    try:
        tuned = tune(
            before,
            host,
            only=only,
            keep_pins=data.draw(st.booleans()),
            repin=data.draw(st.booleans()),
            profile=data.draw(st.none() | st.sampled_from(sorted(PROFILES)) | st.just("realtime")),
        )
    except (PlanError, SpecError):
        event("refused by tune")
        return
    why = refusal(before, root)
    event(f"lets it start: {not why}")
    if not why:
        assert refusal(tuned.document, root) == ""
    was, now = ET.fromstring(before), ET.fromstring(tuned.document)  # noqa: S314 -- our own
    isolation = now.find(f"metadata/{{{KVMHOOKS}}}vm/{{{KVMHOOKS}}}isolation")
    if isolation is None or isolation.get("exclusive") != "yes":
        return
    event("has CPUs of its own")
    pinned = {pin.get("iothread") for pin in now.findall("cputune/iothreadpin")}
    assert iothreads_of(now) - iothreads_of(was) <= pinned
