"""Profiles: what they set, that the file wins, and what gives way where a host cannot."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from kvmhooks.cli.main import main
from kvmhooks.errors import PlanError
from kvmhooks.placement import plan
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.device import hints_of
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.values import ByteSize
from tests.golden.cases import golden_host

LEAST = 'name = "a"\ncpu.vcpus = 4\nmemory.size = "2GiB"\n'


def vm(text: str) -> VmSpec:
    return parse_vm(LEAST + text, folder=Path("/vms"))


def test_the_spec_knows_every_profile() -> None:
    """The key takes exactly the profiles that there are."""
    (names, _) = get_args(hints_of(VmSpec)["profile"])
    assert set(get_args(names)) == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_every_default_has_its_place(name: str) -> None:
    """A profile's words are right ones: with one interface and one disk, each key has its value."""
    text = f'profile = "{name}"\nboot.firmware = "f"\n[[disk]]\npath = "d"\n'
    spec = vm(f'{text}[[net]]\ntype = "tap"\ndevice = "t"')
    applied = {each.at.replace("[0]", "[]") for each in spec.applied}
    assert applied == {default.at for default in PROFILES[name][1]}
    assert len(applied) == len(PROFILES[name][1])
    assert all(default.why for default in PROFILES[name][1])


def test_the_files_own_words_win() -> None:
    """A key that the file says stays as it is, also where it says the usual value."""
    spec = vm('profile = "realtime"\nmemory.hugepages = "2MiB"\nmemory.merge = true')
    assert (spec.memory.hugepages, spec.memory.merge) == (ByteSize.parse("2MiB"), True)
    assert {"memory.hugepages", "memory.merge"}.isdisjoint(each.at for each in spec.applied)
    assert spec.cpu.realtime


def test_only_what_has_queues_gets_some() -> None:
    """QEMU's own NAT has none; eight pairs are the most."""
    tap = '[[net]]\ntype = "tap"\ndevice = "t"\n'
    spec = parse_vm(
        f'name = "a"\nprofile = "web"\ncpu.vcpus = 16\nmemory.size = "1GiB"\n[[net]]\n{tap}'
        f"{tap}queues = 2",
        folder=Path("/"),
    )
    assert [net.queues for net in spec.net] == [None, 8, 2]


def test_a_default_gives_way_where_the_host_cannot() -> None:
    """The next value is taken, one after the other, and each step is told."""
    decided = plan(vm('profile = "compute"\n'), golden_host("laptop"))
    assert decided.spec.cpu.placement == "shared"
    (sentence,) = [each for each in decided.warnings if each.startswith("profile compute: ")]
    assert "cpu.placement is shared instead of dedicated: cpu.vcpus: found 4" in sentence


def test_what_the_file_says_does_not_give_way() -> None:
    """The same word in the file is refused, and so is a default that has nothing instead."""
    own = vm('profile = "compute"\ncpu.placement = "dedicated"')
    with pytest.raises(PlanError, match="4 dedicated"):
        plan(own, golden_host("laptop"))
    with pytest.raises(PlanError, match="4 dedicated"):
        plan(vm('profile = "realtime"'), golden_host("laptop"))


def test_the_verb_shows_what_is_set_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """One profile with all its defaults, or all with what they are for."""
    assert main(["profiles", "show", "web"]) == 0
    shown = capsys.readouterr().out
    assert "net[].queues = as many as vCPUs, 8 at most\n    a pair of queues" in shown
    assert shown.count("where the host cannot: refused") == len(PROFILES["web"][1])
    assert main(["profiles"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PROFILES)
    assert main(["profiles", "--json", "show", "realtime"]) == 0
    assert '"instead": [\n          "2MiB"\n        ]' in capsys.readouterr().out
