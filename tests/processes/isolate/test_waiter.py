"""The process that waits for what is owed, as one of its own on a tree of files."""

from __future__ import annotations

import io
import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.main import main
from kvmhooks.isolate.hook import entry, follower_unit
from kvmhooks.isolate.hook.events import Events
from kvmhooks.isolate.hook.waiter import Waiter
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.dbus import BusError, Systemd
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import add_process, plant, snapshot
from tests.isolate_model.world import Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


A = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
IRQ = "proc/irq/1/smp_affinity_list"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host on which a VM ran and an interrupt cannot be read: its things are owed."""
    plant(Kernel("plain", 8, 4), tmp_path)
    (tmp_path / "before").write_text(json.dumps(snapshot(tmp_path)))
    for operation, sub in (("prepare", "begin"), ("start", "begin"), ("release", "end")):
        if operation == "release":
            block(tmp_path)
        assert entry.main([A.name, operation, sub, "-"], io.BytesIO(A.xml), io.StringIO(),
                         str(tmp_path)) == 0  # fmt: skip
    assert (tmp_path / "run/kvmhooks/state.json").exists()
    return tmp_path


@pytest.fixture
def settling(root: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts such a process; it is ended with the test if it has not ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        words = [*follower_unit.this_package(), "--root", str(root), "--settle"]
        started.append(subprocess.Popen(words, env={}, cwd="/"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def block(root: Path) -> None:
    (root / IRQ).rename(root / "aside")
    (root / IRQ).symlink_to(root / IRQ)  # ELOOP: it is there, and cannot be read


def unblock(root: Path) -> None:
    """In one step: an interrupt that is missing for a moment is gone, and owes nothing."""
    (root / "aside").replace(root / IRQ)


def waiting(root: Path) -> str:
    path = root / "run/kvmhooks/waiter"
    return path.read_text() if path.exists() else ""


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.02)


def is_restored(root: Path) -> bool:
    before = json.loads((root / "before").read_text())
    now = snapshot(root)
    now.pop("before", None)
    return bool(now == before)


def test_it_tries_until_all_is_given_back_and_ends(
    root: Path, settling: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """At growing intervals; then there is neither a record nor a note of it."""
    process = settling()
    eventually(lambda: waiting(root))
    assert waiting(root).split()[0] == str(process.pid)
    time.sleep(1)
    assert process.poll() is None
    unblock(root)
    assert process.wait(60) == 0
    assert is_restored(root)
    assert waiting(root) == ""
    assert not (root / "run/kvmhooks/state.json").exists()


@pytest.mark.parametrize("has_systemd", [True, False])
def test_without_systemd_it_is_a_process_of_its_own(root: Path, *, has_systemd: bool) -> None:
    """Also where systemd runs and does not answer; it is nobody's child, and ends as any other."""
    if has_systemd:
        (root / "run/systemd/system").mkdir(parents=True)
    follower_unit.await_owed(Registry(System(str(root)), Store(str(root))))
    eventually(lambda: waiting(root))
    process = Path("/proc") / waiting(root).split()[0]
    assert {process.joinpath(f"fd/{n}").readlink() for n in range(3)} == {Path("/dev/null")}
    unblock(root)
    eventually(lambda: not process.exists())
    assert is_restored(root)
    assert waiting(root) == ""


def test_it_ends_at_once_when_somebody_else_gives_it_back(
    root: Path, settling: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """`kvmhooks reconcile` between two of its attempts: it need not come to the next one."""
    process = settling()
    eventually(lambda: waiting(root))
    time.sleep(8)  # by now the next attempt is seconds away
    unblock(root)
    assert main(["reconcile", "--root", str(root)]) == 0
    begun = time.monotonic()
    assert process.wait(60) == 0
    assert time.monotonic() - begun < 4
    assert waiting(root) == ""


def test_it_costs_nothing_while_it_waits(
    root: Path, settling: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Its own record wakes it once and no more."""
    process = settling()
    eventually(lambda: waiting(root))
    time.sleep(2)
    status = Path(f"/proc/{process.pid}/status")
    before = status.read_text().rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]
    time.sleep(6)
    after = status.read_text().rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]
    assert int(after) - int(before) < 200


def test_the_kill_switch_ends_it(
    root: Path, settling: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """It ends the waiter as it stops every hook; the debts stay on record."""
    (root / "etc/kvmhooks").mkdir(parents=True)
    (root / "etc/kvmhooks/disabled").touch()
    assert settling().wait(60) == 0
    assert (root / "run/kvmhooks/state.json").exists()


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}'])
def test_a_record_that_is_not_ours_is_left_alone(
    root: Path, settling: Callable[[], subprocess.Popen[bytes]], text: str
) -> None:
    """It ends with 0, so that systemd does not start it again and again."""
    record = root / "run/kvmhooks/state.json"
    record.write_text(text)
    assert settling().wait(60) == 0
    assert record.read_text() == text


@pytest.mark.parametrize("text", ["x", "1", "-1 5", "1 2 3", "9" * 4_000])
def test_a_note_that_is_none_names_nobody(root: Path, text: str) -> None:
    """The debts are waited for, whatever stands there."""
    note = root / "run/kvmhooks/waiter"
    note.write_text(text)
    note.chmod(0o600)
    assert Process.from_text(text) is None
    assert main(["status", "--root", str(root)]) == 0


def test_status_says_who_waits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or that nobody does, and what to do then."""
    assert main(["status", "--root", str(root)]) == 0
    assert "owed: nobody tries again: run `kvmhooks reconcile`" in capsys.readouterr().out
    add_process(root, 4_000, "python3")
    note = root / "run/kvmhooks/waiter"
    note.write_text("4000 77")
    note.chmod(0o600)
    assert main(["status", "--root", str(root)]) == 0
    assert "owed: process 4000 gives it back as soon as that can be done\n" in (
        capsys.readouterr().out
    )
    assert main(["status", "--root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["owed"] == 4_000
    unblock(root)
    assert main(["reconcile", "--root", str(root)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("", None, 10),
        ("[host]\nbudget = 3\n", None, 3),
        ("[host]\nbudget = 3\n", 2.0, 2),
        ("[host]\nbudget = 1\n", 2.0, 1),
        ("[host]\nbudget = 0\n", None, 10),
        ("[host", None, 10),
    ],
)
def test_the_host_has_the_say_over_every_budget(
    root: Path, text: str, most: float | None, expected: float
) -> None:
    """`[host] budget` counts for `reconcile` and a VM's end, too; a call for a VM without a claim
    has two seconds at the most, and a mistake in the file keeps nothing from being given back."""
    config = root / "etc/kvmhooks/kvmhooks.toml"
    config.parent.mkdir(parents=True)
    config.write_text(text)
    unblock(root)
    system = System(str(root))
    begun = system.now()
    registry = Registry(system, Store(str(root)), most)
    registry.reconcile()
    assert registry.budget == expected
    assert system.deadline is not None
    assert expected <= system.deadline - begun < expected + 1
    assert not (root / "run/kvmhooks/state.json").exists()


def test_it_is_told_of_cpus_that_come(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's events, or a CPU that is back would wait for the next attempt: minutes."""
    asked: list[Events] = []
    monkeypatch.setattr(Events, "listen", lambda events: asked.append(events))  # noqa: PLW0108 -- a method of a built-in is not bound
    waiter = Waiter(System(str(root)), Registry(System(str(root)), Store(str(root))))
    assert asked == [waiter.events]


class Ending(System):
    """A host on which systemd has yet to notice that a unit of ours has ended."""

    def __init__(self, root: str, left: int) -> None:
        super().__init__(root)
        self.left = left
        self.started = 0

    def systemd(self, timeout: float = 5.0) -> Systemd:
        del timeout
        return EndingSystemd(self)

    def sleep(self, seconds: float) -> None:
        del seconds
        self.left -= 1


class EndingSystemd(Systemd):
    """Its answers meanwhile."""

    def __init__(self, system: Ending) -> None:
        super().__init__("", 0)
        self.system = system

    def start_service(self, unit: str, words: Sequence[str], *, about: str) -> None:
        del words, about
        if self.system.left > 0:
            raise BusError(f"systemd: org.freedesktop.systemd1.UnitExists: {unit} is there")
        self.system.started += 1


@pytest.mark.parametrize(("left", "started"), [(0, 1), (3, 1), (10_000, 0)])
def test_one_that_has_just_done_its_work_is_no_reason_for_nobody_to_wait(
    root: Path, left: int, started: int
) -> None:
    """Its unit is there until systemd notices its end; one that is there for longer will run."""
    system = Ending(str(root), left)
    follower_unit.await_owed(Registry(system, Store(str(root))), ["/hook"])
    assert system.started == started


def test_a_file_that_cannot_be_read_stays_open_in_no_process_that_stays() -> None:
    """Such is ``xps_cpus`` of a card with one queue, and a follower looks at it while a VM runs."""
    system = System()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            system.hold("proc/self/mem")
    system.let_go()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
