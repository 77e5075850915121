"""The hook's answer at a migration: pins for this host, or nothing, within a bound."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.host import PLANNED, read
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.hook import entry, installation
from kvmhooks.isolate.hook.migration_filter import ask
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.libvirt.tuning.replan import Measure, misfit, replan
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

if TYPE_CHECKING:
    from kvmhooks.isolate.claims.claim import Claim

PACKAGE = Path(__file__).parents[3]
PROGRAM = "import sys; sys.path.insert(0, {path!r}); from kvmhooks.cli.main import main; {end}"
PLANNER = (
    sys.executable,
    "-c",
    PROGRAM.format(path=str(PACKAGE), end="sys.exit(main())"),
)


def domain(
    name: str, cpus: str, emulator: str = "0", nodeset: str = "0", metadata: str = ""
) -> bytes:
    """A guest with two vCPUs, as libvirt hands it to the hook: with a secret in it."""
    first, second = CpuSet.parse(cpus)
    metadata = metadata or (
        '<metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">'
        '<kvmhooks:isolation exclusive="yes"/></kvmhooks:vm></metadata>'
    )
    digit = sum(map(ord, name)) % 10
    return (
        f"<domain type='kvm' id='1'>\n  <name>{name}</name>\n"
        f"  <uuid>{str(digit) * 8}-1111-2222-3333-444444444444</uuid>\n  {metadata}\n"
        "  <memory unit='KiB'>1048576</memory>\n  <vcpu placement='static'>2</vcpu>\n"
        f"  <cputune>\n    <vcpupin vcpu='0' cpuset='{first}'/>\n"
        f"    <vcpupin vcpu='1' cpuset='{second}'/>\n"
        f"    <emulatorpin cpuset='{emulator}'/>\n  </cputune>\n"
        f"  <numatune>\n    <memory mode='strict' nodeset='{nodeset}'/>\n  </numatune>\n"
        "  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>\n"
        "  <cpu mode='custom' match='exact'><model>Haswell</model></cpu>\n"
        "  <devices><graphics type='vnc' passwd='se&gt;cret' port='5900'/></devices>\n</domain>\n"
    ).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two nodes of four cores each."""
    return write_host(tmp_path, packages=2, cores=4, nodes=2, numbering="adjacent")


def answer(
    root: Path, xml: bytes, operation: str = "migrate", planner: tuple[str, ...] = PLANNER
) -> str:
    out = io.StringIO()
    code = entry.main(
        ["web", operation, "begin", "qemu:///system"], io.BytesIO(xml), out, str(root), planner
    )
    assert code == 0
    return out.getvalue()


def claim_of(xml: bytes | str) -> Claim:
    found = read_claim(xml)
    assert found is not None
    return found


def residue(xml: bytes | str) -> str:
    """All of a domain but its pins and nodesets."""
    text = xml.decode() if isinstance(xml, bytes) else xml
    return re.sub(r"(cpuset|nodeset)='[0-9,-]+'", r"\1=''", text)


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize(
    ("cpus", "emulator", "nodeset"), [("8-9", "0", "0"), ("2-3", "31", "0"), ("2-3", "0", "2")]
)
def test_pins_of_another_host_become_those_of_this_one(
    root: Path, operation: str, cpus: str, emulator: str, nodeset: str
) -> None:
    """CPUs or nodes that are not here: new ones, reserved, and every other byte is the same."""
    before = domain("web", cpus, emulator, nodeset)
    after = answer(root, before, operation)
    assert residue(after) == residue(before)
    claim = claim_of(after)
    host = read(str(root), PLANNED)
    assert claim.exclusive <= host.online
    assert misfit(after.encode(), host, ()) == ""
    assert Registry(System(str(root)), Store(str(root))).claims() == [claim]


@pytest.mark.parametrize(
    ("xml", "planner"),
    [
        (domain("web", "2-3"), PLANNER),  # they are right already
        (domain("web", "8-9", metadata=" "), PLANNER),  # none of ours
        (domain("web", "8-9"), ()),  # no helper was found when the hook was installed
        (domain("web", "8-9"), ("/nonexistent/python",)),
        (domain("web", "8-9"), ("/bin/false",)),
        (domain("web", "8-9"), ("/bin/echo", "<domain/>")),
        (domain("web", "8-9"), ("/bin/sh", "-c", "sed s/web/other/")),
        (b"<domain>urn:kvmhooks:1", PLANNER),
        (domain("web", "8-9").replace(b"<vcpu placement='static'>2<", b"<vcpu>x<"), PLANNER),
    ],
)
def test_whatever_is_wrong_the_answer_is_empty(
    root: Path, xml: bytes, planner: tuple[str, ...]
) -> None:
    """And exit 0, and nothing is reserved."""
    assert answer(root, xml, planner=planner) == ""
    assert Registry(System(str(root)), Store(str(root))).claims() == []


def test_two_that_come_at_once_do_not_meet(root: Path) -> None:
    """The first one's CPUs are kept for it: a claim of a third on them is refused until then."""
    first = claim_of(answer(root, domain("a", "8-9")))
    second = claim_of(answer(root, domain("b", "8-9")))
    assert first.exclusive.isdisjoint(second.exclusive)
    registry = Registry(System(str(root)), Store(str(root)))
    with pytest.raises(IsolationError, match="are kept for a"):
        registry.prepare(claim_of(domain("c", str(first.exclusive))))
    registry.prepare(first)
    assert list(registry.look().reserved) == [second.key]
    assert list(registry.look().held) == [first.key]


class Later(System):
    """A system whose clock goes as it is told."""

    clock = 0.0

    def now(self) -> float:
        return self.clock


def test_a_reservation_expires_by_itself(root: Path) -> None:
    """A migration that fails here calls no hook."""
    system = Later(str(root))
    registry = Registry(system, Store(str(root)))
    registry.reserve(claim_of(domain("a", "2-3")), 120)
    system.clock = 119
    assert len(registry.claims()) == 1
    system.clock = 121
    assert registry.claims() == []
    registry.reconcile()
    assert not (root / "run/kvmhooks/state.json").exists()


def test_a_helper_that_hangs_or_talks_too_much_is_ended() -> None:
    """The bound holds; libvirt waits meanwhile."""
    begun = time.monotonic()
    with pytest.raises(IsolationError, match="no answer within 1 s"):
        ask(["/bin/sleep", "60"], b"", 1)
    with pytest.raises(IsolationError, match="more than"):
        ask(["/bin/sh", "-c", "exec yes"], b"", 20)
    assert time.monotonic() - begun < 20
    with pytest.raises(IsolationError, match="ended with 3"):
        ask(["/bin/sh", "-c", "cat; exit 3"], b"<secret/>", 5)
    assert ask(["/bin/cat"], b"x" * 300_000, 20) == b"x" * 300_000


def test_nothing_of_the_xml_is_logged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a good one, nor of one that breaks the helper or the parser."""
    lines: list[str] = []
    monkeypatch.setattr(
        System, "log", lambda _system, line, severity=6: lines.append(f"{severity}{line}")
    )
    answer(root, domain("web", "8-9"))
    answer(root, domain("web", "8-9").replace(b"'>2</vcpu", b"'>999</vcpu"))
    answer(root, domain("web", "8-9"), planner=("/bin/sh", "-c", "cat >&2; exit 1"))
    assert len(lines) == 3
    assert not [line for line in lines if "cret" in line or "passwd" in line or "<" in line]


def test_replan_is_for_what_a_guest_can_bear(root: Path) -> None:
    """The pins of two cores in two nodes become two cores of one; not a byte else is different."""
    host = read(str(root), PLANNED)
    found = replan(domain("web", "2,6"), host)
    assert (found.before, found.after) == (Measure(2, 2, 2), Measure(1, 1, 2))
    assert found.moves
    assert residue(found.document) == residue(domain("web", "2,6"))


def test_only_roots_own_kvmhooks_is_the_hooks_helper(tmp_path: Path) -> None:
    """There is no helper where others could change the program; the installed file names it."""
    words = ("/opt/kvmhooks/bin/python", "-I", "-m", "kvmhooks.cli.main")
    found = installation.install(str(tmp_path), libvirt=(9, 0, 0), planner=words)
    assert f"planner = {[*words]!r}" in (tmp_path / found.path.lstrip("/")).read_text()
    planner = installation.trusted_planner()
    if planner:
        assert Path(planner[0]).resolve().stat().st_uid == 0


def test_the_installed_file_answers(root: Path, tmp_path: Path) -> None:
    """With the system's interpreter, which has no kvmhooks, and the helper's, which has."""
    found = installation.install(str(tmp_path / "i"), libvirt=(9, 0, 0), planner=PLANNER)
    words = [str(tmp_path / f"i{found.path}"), "--root", str(root), "web", "migrate", "begin", "-"]
    assert claim_of(ask(words, domain("web", "8-9"), 60)).exclusive <= CpuSet(range(8))
    assert ask(words, domain("web", "2-3"), 60) == b""
