"""The XML and the arguments of a large VM, in process, beside libvirt's own domxml-to-native of it.

A VM with 64 vCPUs and 20 disks, planned once. ``domxml-to-native`` is libvirt's
``virConnectDomainXMLToNative``, called in a process that has its driver loaded, timed around the
call; what the process is asked over its pipe is not counted. Reading the XML back (``import``) and
tuning it are measured as well.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the tests' fake host and translator are not installed

from measure import in_turns, show

from kvmhooks.host import Host, read
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.tuning.tune import tune
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import parse_vm
from tests.equality.translator import Translator
from tests.fakehost import write_host

HOST: dict[str, Any] = {"packages": 2, "cores": 40, "threads": 2, "nodes": 2, "memory_mib": 262_144}
VM = """
name = "large"
[cpu]
vcpus = 64
placement = "dedicated"
[memory]
size = "64GiB"
""" + "".join(
    f'[[disk]]\npath = "/dev/vg0/disk{at}"\niothread = {at % 4 + 1}\n' for at in range(20)
)


def main() -> None:
    """Measure and print."""
    planned, host = large()
    xml = domain_xml(planned)
    subjects = {
        "domain_xml()": lambda: _done(domain_xml(planned)),
        "qemu_argv()": lambda: _done(qemu_argv(planned)),
        "read_domain()": lambda: _done(read_domain(xml)),
        "tune()": lambda: _done(tune(xml, host)),
    }
    if os.geteuid() != 0:
        print("libvirt's translation is not measured: only root can make a mount namespace")
        show(in_turns(subjects, rounds=40), "domain_xml()")
        return
    with tempfile.TemporaryDirectory() as folder, Translator(Path(folder)) as libvirt:
        translate = functools.partial(libvirt.timed, xml)
        best = in_turns({"domxml-to-native": lambda: translate()[1], **subjects}, rounds=40)
    show(best, "domxml-to-native")


def large() -> tuple[Plan, Host]:
    """Return the plan of the VM, and its host."""
    with tempfile.TemporaryDirectory() as folder:
        host = read(write_host(Path(folder), **HOST))
    return plan(parse_vm(VM, folder=Path("/")), host), host


def _done(_result: object) -> None:
    """Report nothing: the time until here is what is measured."""


if __name__ == "__main__":
    main()
