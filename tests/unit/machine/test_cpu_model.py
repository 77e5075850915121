"""The CPU model that the guest sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.host import Host, Kvm
from kvmhooks.machine.cpu_model import choose_cpu
from kvmhooks.machine.guest_cpu import GuestCpu
from kvmhooks.spec import parse_vm

NO_HOST_MODEL = "CPU model max: TCG has no host model"
TOPOEXT = "CPU feature topoext: without it an AMD guest sees no threads"


@pytest.mark.parametrize(
    ("keys", "vendor", "accel", "threads", "chosen", "why"),
    [
        ("", "intel", "kvm", 2, GuestCpu(model="host"), ()),
        ("", "amd", "kvm", 1, GuestCpu(model="host"), ()),
        ("", "amd", "kvm", 2, GuestCpu(model="host", features=("+topoext",)), (TOPOEXT,)),
        (
            'features = ["+invtsc"]',
            "amd",
            "kvm",
            2,
            GuestCpu(model="host", features=("+invtsc", "+topoext")),
            (TOPOEXT,),
        ),
        (
            'features = ["-topoext"]',
            "amd",
            "kvm",
            2,
            GuestCpu(model="host", features=("-topoext",)),
            (),
        ),
        ('model = "EPYC"', "amd", "kvm", 2, GuestCpu(model="EPYC"), ()),
        ("", None, "tcg", 1, GuestCpu(model="max"), (NO_HOST_MODEL,)),
        ("", None, "tcg", 2, GuestCpu(model="max", vendor="GenuineIntel"), (NO_HOST_MODEL,)),
        ('model = "max"', None, "tcg", 2, GuestCpu(model="max", vendor="GenuineIntel"), ()),
        ('model = "Nehalem"', None, "tcg", 2, GuestCpu(model="Nehalem"), ()),
    ],
)
def test_the_guest_sees_its_threads(
    keys: str, vendor: str | None, accel: str, threads: int, chosen: GuestCpu, why: tuple[str, ...]
) -> None:
    """On AMD ``topoext`` is added where threads are to be seen; the spec's own word stands."""
    text = f'name = "a"\n[cpu]\nvcpus = 2\n{keys}\n[memory]\nsize = "1GiB"\n'
    cpu = parse_vm(text, folder=Path("/")).cpu
    host = Host(kvm=Kvm(available=True, vendor=vendor))
    assert choose_cpu(cpu, host, accel=accel, threads=threads) == (chosen, why)
