"""Units that cannot start while VMs own their CPUs: which, how that is known, and who is told."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.cli.main import main
from kvmhooks.cli.status import held_things
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.hook import entry
from kvmhooks.isolate.registry.unit_affinities import PARTLY, doomed, told, warnings
from kvmhooks.isolate.system import dbus_messages, loaded_units, unit_files
from kvmhooks.isolate.system.dbus import BusError, Systemd
from kvmhooks.isolate.system.dbus_messages import Reader, Writer
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import ISOLATION, Vm, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.claims.claim import Claim

SETS = st.sets(st.integers(0, 7)).map(CpuSet)
WHAT = "units that cannot start while VMs own all CPUs of their CPUAffinity= (215/CPUAFFINITY): "


def guest(name: str = "a", cpus: str = "6-7", policy: str = ISOLATION) -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), policy)


def claim_of(vm: Vm) -> Claim:
    found = read_claim(vm.xml)
    assert found is not None
    return found


@given(SETS, SETS, SETS, SETS)
def test_law_a_unit_is_named_if_the_vm_takes_the_last_of_its_cpus(
    affinity: CpuSet, own: CpuSet, others: CpuSet, online: CpuSet
) -> None:
    """One that it could run on is the VM's, and none is left that no VM has."""
    is_named = bool(doomed({"a.service": affinity}, own, own | others, online))
    usable = affinity & online
    assert is_named == (bool(usable & own) and not usable - own - others)


@pytest.mark.parametrize(
    ("affinity", "others", "expected"),
    [
        ("6-7", "", True),
        ("6", "", True),
        ("0,6", "", False),
        ("4-7", "", False),
        ("4-7", "4-5", True),
        ("4-5", "4-5", False),
        ("7,9", "", True),
        ("9", "", False),
    ],
)
def test_a_unit_with_one_cpu_left_starts(affinity: str, others: str, expected: bool) -> None:  # noqa: FBT001
    """On CPUs 0-7 a VM takes 6-7; a CPU that is not online counts for nothing."""
    own, every = CpuSet.parse("6-7"), CpuSet.parse("0-7")
    found = doomed({"x.service": CpuSet.parse(affinity)}, own, own | CpuSet.parse(others), every)
    assert bool(found) is expected


def test_many_units_are_one_line() -> None:
    """Nobody reads a hundred names."""
    units = {f"u{number:02}.service": CpuSet({6}) for number in range(10)}
    (line,) = told(units)
    assert line == WHAT + ", ".join(f"u{n:02}.service (6)" for n in range(8)) + " and 2 more"
    assert told({}) == []


# --- unit files -----------------------------------------------------------------------------------

LIB, ETC, RUN = "usr/lib/systemd/system", "etc/systemd/system", "run/systemd/system"
SIX = "[Service]\nCPUAffinity=6\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{LIB}/a.service": SIX}, {"a.service": "6"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=1 3,5-6\n"}, {"a.service": "1,3,5-6"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=1\nCPUAffinity = 2\n"}, {"a.service": "1-2"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=1\nCPUAffinity=\nCPUAffinity=2\n"},
         {"a.service": "2"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=1\nCPUAffinity=\n"}, {}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=1 \\\n  2\n"}, {"a.service": "1-2"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=none of it\nCPUAffinity=2\n"},
         {"a.service": "2"}),
        ({f"{LIB}/a.service": "[Service]\n#CPUAffinity=1\n; CPUAffinity=2\n"}, {}),
        ({f"{LIB}/a.service": "[Unit]\nCPUAffinity=1\n[Service]\nExecStart=/x\n"}, {}),
        ({f"{LIB}/a.socket": "[Socket]\nCPUAffinity=1\n[Service]\nCPUAffinity=2\n"},
         {"a.socket": "1"}),
        ({f"{LIB}/a.timer": "[Service]\nCPUAffinity=1\n"}, {}),
        ({f"{LIB}/a.service": SIX, f"{ETC}/a.service": "[Service]\nCPUAffinity=7\n"},
         {"a.service": "7"}),
        ({f"{LIB}/a.service": SIX, f"{RUN}/a.service": "[Service]\n"}, {}),
        ({f"{LIB}/a.service": SIX, f"{ETC}/a.service.d/x.conf": "[Service]\nCPUAffinity=7\n"},
         {"a.service": "6-7"}),
        ({f"{LIB}/a.service": SIX, f"{ETC}/a.service.d/x": "[Service]\nCPUAffinity=7\n"},
         {"a.service": "6"}),
        ({f"{LIB}/a.service": SIX,
          f"{LIB}/a.service.d/x.conf": "[Service]\nCPUAffinity=1\n",
          f"{ETC}/a.service.d/x.conf": "[Service]\nCPUAffinity=\n"}, {}),
        ({f"{LIB}/a.service": "[Service]\n",
          f"{ETC}/a.service.d/2.conf": "[Service]\nCPUAffinity=\nCPUAffinity=2\n",
          f"{LIB}/service.d/1.conf": "[Service]\nCPUAffinity=1\n"}, {"a.service": "2"}),
        ({f"{LIB}/a-b-c@d.service": "[Service]\n",
          f"{LIB}/a-b-c@.service.d/1.conf": "[Service]\nCPUAffinity=1\n",
          f"{LIB}/a-b-.service.d/2.conf": "[Service]\nCPUAffinity=2\n",
          f"{LIB}/a-.service.d/3.conf": "[Service]\nCPUAffinity=3\n",
          f"{LIB}/a-b.service.d/4.conf": "[Service]\nCPUAffinity=4\n"},
         {"a-b-c@d.service": "1-3"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=numa\nNUMAMask=1\n",
          "sys/devices/system/node/node1/cpulist": "4-7"}, {"a.service": "4-7"}),
        ({f"{LIB}/a.service": "[Service]\nCPUAffinity=numa\nNUMAMask=all\nCPUAffinity=3\n"},
         {"a.service": "3"}),
        ({f"{LIB}/a.service": "[Service]\nNUMAMask=all\nCPUAffinity=3\nCPUAffinity=numa\n",
          "sys/devices/system/node/node0/cpulist": "0-3",
          "sys/devices/system/node/node1/cpulist": "4-7"}, {"a.service": "0-7"}),
    ],
)  # fmt: skip
def test_unit_files_say_what_systemd_would_read_in_them(
    tmp_path: Path, files: dict[str, str], expected: dict[str, str]
) -> None:
    """Lists add up, an empty one forgets; the nearer file has the say; drop-ins in their order."""
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found, is_whole = unit_files.affinities(System(str(tmp_path)))
    assert {unit: str(cpus) for unit, cpus in found.items()} == expected
    assert is_whole


def test_masked_units_and_other_names_are_none(tmp_path: Path) -> None:
    """A link to /dev/null masks what is below; one to another unit is its second name."""
    for place in (LIB, ETC):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / LIB / "a.service").write_text(SIX)
    (tmp_path / LIB / "b.service").write_text(SIX)
    (tmp_path / LIB / "alias.service").symlink_to("b.service")
    (tmp_path / ETC / "a.service").symlink_to("/dev/null")
    assert unit_files.affinities(System(str(tmp_path))) == ({"b.service": CpuSet({6})}, True)


def test_no_end_of_unit_files_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libvirt waits."""
    monkeypatch.setattr(unit_files, "_MOST", 2)
    (tmp_path / LIB).mkdir(parents=True)
    for number in range(3):
        (tmp_path / LIB / f"{number}.service").write_text(SIX)
    found, is_whole = unit_files.affinities(System(str(tmp_path)))
    assert (sorted(found), is_whole) == (["0.service", "1.service"], False)


# --- systemd itself -------------------------------------------------------------------------------


class Manager:
    """systemd's side of a connection: units of one kind, their masks, and what is refused."""

    def __init__(self, path: str, units: dict[str, bytes | None], load: str = "loaded") -> None:
        self._units = units
        self._load = load
        self.listed: bytes | None = None
        """The answer instead of the list of units."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            while not peer.recv(200).endswith(b"\r\n"):
                pass
            peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
            peer.recv(7, socket.MSG_WAITALL)
            serial = 0
            while True:
                try:
                    _, fields, body = dbus_messages.read_message(peer)
                except OSError:
                    return
                serial += 1
                kind, reply = self._answer(fields, body)
                peer.sendall(dbus_messages.message(kind, serial, ((5, "u", serial),), reply))

    def _answer(self, fields: dict[int, str], body: bytes) -> tuple[int, bytes]:
        if fields[3] == "Hello":
            return dbus_messages.RETURN, b""
        if fields[3] == "ListUnitsByPatterns":
            return dbus_messages.RETURN, self._listed(body) if self.listed is None else self.listed
        reader = Reader(body)
        assert (reader.text(), reader.text()) == (
            "org.freedesktop.systemd1.Service",
            "CPUAffinity",
        )
        mask = self._units[fields[1].removeprefix("/unit/")]
        if mask is None:
            return dbus_messages.ERROR, b""
        answer = Writer()
        answer.signature("ay")
        answer.uint32(len(mask))
        answer.raw(mask)
        return dbus_messages.RETURN, answer.data

    def _listed(self, asked: bytes) -> bytes:
        reader = Reader(asked)
        assert (reader.uint32(), reader.uint32()) == (0, len(asked) - 8)
        patterns = [reader.text() for _ in range(4)]
        assert patterns == ["*.service", "*.socket", "*.mount", "*.swap"]
        body = Writer()
        with body.array(8):
            for name in self._units:
                body.align(8)
                for text in (f"{name}.service", "what it is", self._load, "active", "sub", ""):
                    body.text(text)
                body.text(f"/unit/{name}")
                body.uint32(0)
                body.text("")
                body.text("/")
        return body.data


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A socket's path, which has at most 107 characters."""
    short = Path(f"/tmp/kvmhooks-units-{os.getpid()}")
    short.symlink_to(tmp_path)
    yield f"{short}/bus"
    short.unlink()


def test_systemd_tells_the_masks_of_its_units(path: str) -> None:
    """More than are asked at once; one without a mask, and one that goes meanwhile."""
    units: dict[str, bytes | None] = {f"u{number}": b"\xc0" for number in range(70)}
    units |= {"none": b"", "gone": None, "high": b"\x00\x01"}
    manager = Manager(path, units)
    with Systemd(path, 5) as systemd:
        found, is_whole = systemd.affinities(5)
    manager.close()
    expected = {f"u{number}.service": CpuSet({6, 7}) for number in range(70)}
    assert found == expected | {"high.service": CpuSet({8})}
    assert is_whole


def test_units_that_are_not_loaded_are_passed_over(path: str) -> None:
    """A name that others mention (`not-found`) is no unit, and so is a masked one."""
    manager = Manager(path, {"a": b"\xc0"}, load="not-found")
    with Systemd(path, 5) as systemd:
        assert systemd.affinities(5) == ({}, True)
    manager.close()


def test_systemd_is_asked_no_longer_than_allowed(path: str) -> None:
    """The answer has the part that is known by then, and says that it is not all."""
    manager = Manager(path, {"a": b"\xc0"})
    with Systemd(path, 5) as systemd:
        assert loaded_units.affinities(systemd, 0) == ({}, False)
    manager.close()


@pytest.mark.parametrize(
    "listed",
    [b"", b"\x07", b"\xff\xff\xff\x7f\0\0\0\0\xff", b"\x08\0\0\0\0\0\0\0\x02\0\0\0\xff\xfe\0\0"],
)
def test_an_answer_that_is_none_is_an_error_of_ours(path: str, listed: bytes) -> None:
    """The unit files are read then, and the VM starts, whatever the answer is made of."""
    manager = Manager(path, {})
    manager.listed = listed
    with Systemd(path, 5) as systemd, pytest.raises(BusError, match="systemd: CPUAffinity: "):
        systemd.affinities(5)
    manager.close()


def test_a_failure_to_warn_refuses_no_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a mistake of ours."""

    def broken(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(entry, "foresee", broken)
    plant(Kernel("plain", 8, 3), tmp_path)
    xml = io.BytesIO(guest().xml)
    assert entry.main(["a", "prepare", "begin", "-"], xml, io.StringIO(), str(tmp_path)) == 0


def test_without_an_answer_the_files_are_read(tmp_path: Path) -> None:
    """A host whose bus is gone has its unit files all the same."""
    for name, text in {
        f"{LIB}/a.service": SIX,
        "run/systemd/system/x.service": "",
        "sys/devices/system/cpu/online": "0-7",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with pytest.raises(BusError):
        Systemd(str(tmp_path / "run/dbus/system_bus_socket"), 1).affinities(1)
    assert warnings(System(str(tmp_path)), [claim_of(guest())], ()) == [f"{WHAT}a.service (6)"]


# --- who is told ----------------------------------------------------------------------------------


class Listening(Kernel):
    """A host whose log is read."""

    def __init__(self) -> None:
        super().__init__("systemd", 8, 4)
        self.logged: list[str] = []

    def log(self, line: str, severity: int = 6) -> None:
        del severity
        self.logged.append(line)


def test_a_hook_names_them_at_prepare_and_status_while_they_cannot_start() -> None:
    """One VM's CPUs may not be enough to keep a unit from starting, and those of two be."""
    kernel = Listening()
    kernel.affinities = {"one.service": CpuSet({7}), "two.service": CpuSet({5, 6, 7})}
    world = World(kernel)
    a, b = guest(), guest("b", "4-5")
    entry.foresee(world.registry, a.xml)
    assert kernel.logged == [f"a: {WHAT}one.service (7)"]
    world.start(a)
    assert held_things(world.registry, world.state)["units"] == [f"{WHAT}one.service (7)"]
    entry.foresee(world.registry, b.xml)
    assert kernel.logged[1:] == [f"b: {WHAT}two.service (5-7)"]
    world.start(b)
    assert held_things(world.registry, world.state)["units"] == [
        f"{WHAT}one.service (7), two.service (5-7)"
    ]
    world.stop(a)
    world.stop(b)
    assert held_things(world.registry, world.state)["units"] == []


@pytest.mark.parametrize(
    "policy", ['<kvmhooks:isolation exclusive="yes" tasks="no"/>', '<kvmhooks:memory thp="never"/>']
)
def test_a_vm_that_narrows_nobody_keeps_no_unit_from_starting(policy: str) -> None:
    """Its CPUs are free for all, so systemd is not asked either."""
    kernel = Listening()
    kernel.affinities = {"one.service": CpuSet({7})}
    entry.foresee(World(kernel).registry, guest(policy=policy).xml)
    assert [line for line in kernel.logged if WHAT in line] == []


def test_what_was_not_looked_at_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Silence would be taken for «none»."""
    monkeypatch.setattr(unit_files, "_MOST", 0)
    (tmp_path / LIB).mkdir(parents=True)
    (tmp_path / LIB / "a.service").write_text(SIX)
    assert warnings(System(str(tmp_path)), [claim_of(guest())], ()) == [PARTLY]


def test_simulate_has_a_row_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the writes, of a phase of its own; a tree's unit files tell."""
    root = tmp_path / "root"
    plant(Kernel("plain", 8, 3), root)
    unit = root / LIB / "a.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(SIX)
    xml = tmp_path / "a.xml"
    xml.write_bytes(guest().xml)
    assert main(["simulate", str(xml), "--root", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {"phase": "warning", "path": "systemd", "value": f"{WHAT}a.service (6)"}
    assert all(row["phase"] != "warning" for row in rows[1:])
    assert main(["simulate", str(xml), "--root", str(root)]) == 0
    assert capsys.readouterr().out.startswith(f"warning  systemd: {WHAT}a.service (6)\n")
