"""Large domains cost as much more as they are larger."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from kvmhooks.errors import KvmhooksError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.libvirt.edit.difference import hide, unified
from kvmhooks.libvirt.edit.text import MAX_ELEMENTS, parse
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.tuning.replan import misfit, replan
from kvmhooks.libvirt.tuning.tune import tune
from tests.fakehost import FakeHost

MOST = 2.4
"""Twice as much may take so many times the steps; what goes with the square takes 4 times."""


def domain(parts: str, *, devices: str = "", vcpus: int = 2) -> bytes:
    """A domain with these parts."""
    return (
        f"<domain type='kvm'><name>a</name><memory>1048576</memory><vcpu>{vcpus}</vcpu>{parts}"
        f"<devices>{devices}</devices></domain>"
    ).encode()


def disks(count: int, text: str = "") -> str:
    return "".join(
        f"<disk type='file'{text}>\n<driver name='qemu' type='raw'/><source file='/d{at}'/>"
        f"<target dev='vd{at}' bus='virtio'/></disk>\n"
        for at in range(count)
    )


SHAPES: dict[str, Callable[[int], bytes]] = {
    "empty elements": lambda count: domain("", devices="<a/>" * count),
    "empty elements of the root": lambda count: domain("<a/>" * count),
    "disks": lambda count: domain("", devices=disks(count)),
    "disks that no spec can say": lambda count: domain(
        "", devices=disks(count, " device='floppy'")
    ),
    "disks of a path that no spec takes": lambda count: domain(
        "", devices=disks(count).replace("file='/d", "file='/&#x85;d")
    ),
    "SCSI disks and controllers": lambda count: domain(
        "",
        devices="".join(
            f"<disk type='file'><source file='/d'/><target bus='scsi'/>"
            f"<address type='drive' controller='{at}'/></disk>"
            f"<controller type='scsi' index='{at}'><driver iothread='{at + 1}'/></controller>"
            for at in range(count)
        ),
    ),
    "interfaces": lambda count: domain(
        "",
        devices="<interface type='bridge'><source bridge='b'/><model type='virtio'/></interface>"
        * count,
    ),
    "pins": lambda count: domain(
        "<cputune>"
        + "".join(f"<vcpupin vcpu='{at}' cpuset='0'/>" for at in range(count))
        + "</cputune>"
    ),
    "vCPUs": lambda count: domain("", vcpus=count),
    "iothreads": lambda count: domain(
        "<iothreadids>"
        + "".join(f"<iothread id='{at + 1}'/>" for at in range(count))
        + "</iothreadids>"
    ),
    "features twice": lambda count: domain(
        "<cpu mode='host-passthrough'>"
        + "<feature policy='require' name='pmu'/>" * count
        + "</cpu>"
    ),
    "cells": lambda count: domain(
        "<cpu mode='host-passthrough'><numa>"
        + "".join(f"<cell id='{at}' memory='1024' cpus='{at}'/>" for at in range(count))
        + "</numa></cpu>",
        vcpus=count,
    ),
    "attributes": lambda count: domain(
        "<a " + " ".join(f"b{at}='c'" for at in range(count)) + "/>"
    ),
    "devices of the host": lambda count: domain(
        "",
        devices="".join(
            "<hostdev mode='subsystem' type='pci'><source>"
            f"<address domain='{at}' bus='0' slot='0' function='0'/></source></hostdev>"
            for at in range(count)
        ),
    ),
    "channels": lambda count: domain(
        "",
        devices="<channel type='unix'><source path='/c'/><target type='virtio' name='c'/></channel>"
        * count,
    ),
    "timers": lambda count: domain("<clock>" + "<timer name='rtc'/>" * count + "</clock>"),
}
"""Things that there can be many of, each a domain of so many."""


def shown(document: bytes, host: Host) -> str:
    return unified(tune(document, host).pieces, "a")


VERBS: dict[str, Callable[[bytes, Host], object]] = {
    "import": lambda document, _: read_domain(document).toml,
    "tune": shown,
    "replan": lambda document, host: (misfit(document, host, ()), replan(document, host)),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with two nodes."""
    root = tmp_path_factory.mktemp("host")
    FakeHost(packages=2, cores=4, nodes=2).write(root)
    return read(root)


def steps(work: Callable[[], object]) -> int:
    """Return how many lines of Python some work runs, each turn of a loop counted."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(KvmhooksError):
            work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("shape", SHAPES)
def test_twice_as_much_takes_no_more_than_twice_the_steps(
    shape: str, verb: str, host: Host
) -> None:
    """Nothing goes with the square of anything that there is more of in a document."""
    made, run = SHAPES[shape], VERBS[verb]
    with contextlib.suppress(KvmhooksError):
        run(made(60), host)  # cattrs compiles what it has not met
    few, more, most = (steps(partial(run, made(count), host)) for count in (60, 120, 240))
    assert most - more <= MOST * (more - few) + 500, (few, more, most)


LARGE: dict[str, Callable[[], object]] = {
    "empty elements": lambda: read_domain(SHAPES["empty elements"](MAX_ELEMENTS - 10)),
    "disks": lambda: read_domain(domain("", devices=disks(8_000))),
    "pins": lambda: read_domain(SHAPES["pins"](30_000)),
    "text between elements": lambda: parse(b"<a>" + (b"x" * 36 + b"<b/>") * 99_000 + b"</a>"),
    "name spaces": lambda: parse(
        b"<a "
        + b" ".join(b"xmlns:n%d='u'" % at for at in range(40_000))
        + b">"
        + b"<b xmlns:c='u'/>" * 40_000
        + b"</a>"
    ),
    "secrets that do not end": lambda: hide("-----BEGIN KEY-----" * 100_000 + "<arg " * 200_000),
}


@pytest.mark.parametrize("work", LARGE.values(), ids=LARGE)
def test_the_largest_documents_are_read_in_seconds(work: Callable[[], object]) -> None:
    """Nor is text copied with the square of it: the bound is tenfold what it takes."""
    started = time.process_time()
    work()
    assert time.process_time() - started < 30


def test_one_line_is_edited_in_seconds(host: Host) -> None:
    """A document of a MiB without an end of line, in which each disk is changed."""
    document = domain("", devices=disks(8_000)).replace(b"\n", b"")
    started = time.process_time()
    assert len(tune(document, host).changes) > 8_000
    assert time.process_time() - started < 30


@pytest.mark.parametrize("count", [65_536, 99_999_999_999, 999_999_999_999_999])
@pytest.mark.parametrize("verb", VERBS)
def test_more_vcpus_than_libvirt_has_are_refused(count: int, verb: str, host: Host) -> None:
    """The count is no larger than its schema says, so that nothing is counted up to it."""
    with pytest.raises(SpecError) as caught:
        VERBS[verb](domain("", vcpus=count), host)
    expected = f"domain: vcpu: found '{count}', expected a whole number from 1 to 65535"
    assert str(caught.value) == expected
