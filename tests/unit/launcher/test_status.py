"""The records of VMs in their run directories, read by another version of kvm-launch."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import pwd
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import asdict

from kvm_launch.commands.verbs import main
from kvm_launch.tell.screen import Screen
from kvm_launch.tell.states import Step, VmState
from kvm_launch.tell.status import NAME, StatusReporter, VmRecord, find, listed, running
from kvmhooks.errors import LaunchError, UsageError
from kvmhooks.isolate.system.process_stat import start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.qemu.run_dir import RunDir
from kvmhooks.survey.records import recorded
from tests.golden.cases import golden_plan

RELEASED = {
    "name": "db1", "source": "/etc/db1.toml", "state": "running", "why": "", "since": 5.0,
    "supervisor": os.getpid(), "supervisor_start": start_time(System(), os.getpid()), "qemu": 77,
    "cpus": "4-7", "exclusive": "4-6", "dedicated": "4-6",
    "uuid": "00000000-0000-4000-8000-000000000001", "twin": False,
}  # fmt: skip
"""A record of a92f6b5."""


@pytest.mark.parametrize(
    ("more", "less"),
    [({}, ()), ({"colour": "green", "threads": [1]}, ()), ({}, ("twin", "uuid", "dedicated"))],
    ids=["as released", "newer", "older"],
)
def test_a_vm_of_another_version_is_listed_and_found(
    tmp_path: Path, more: dict[str, object], less: tuple[str, ...]
) -> None:
    """After an upgrade or a downgrade: with all that both know of, so that it can be stopped."""
    document = {key: value for key, value in RELEASED.items() if key not in less}
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / NAME).write_text(json.dumps(document | more))
    (record,) = running(tmp_path)
    assert record == find(tmp_path, "db1")
    known = asdict(record)
    assert {key: known[key] for key in document} == document
    assert known.keys() == asdict(VmRecord(name="", source="")).keys()


def test_a_flood_of_notes_is_written_once_a_second(tmp_path: Path) -> None:
    """States are on record at once, and the last note soon, however many there are."""
    written: list[str] = []

    class Directory:
        path = tmp_path / "db1"

        def write(self, _: str, text: str) -> None:
            written.append(json.loads(text)["why"])

    async def story() -> None:
        reporter = StatusReporter(golden_plan("tiny", "laptop").spec, Screen(io.StringIO()))
        directory: Any = Directory()
        with reporter.kept(directory):
            for state in (VmState.PLANNED, VmState.STARTING, VmState.PAUSED):
                reporter.life.enter(state)
            reporter.started(77)
            reporter.life.enter(VmState.RUNNING, "now")
            assert written[-1] == "now"
            before = len(written)
            for number in range(500):
                reporter.life.report(str(number))
            assert len(written) == before
            reporter.life.enter(VmState.PAUSED, "at once")
            assert written[before:] == ["at once"]
            reporter.life.report("the last one")
            await asyncio.sleep(1.5)
        assert written[before:] in (["at once", "the last one"], ["at once"] + ["the last one"] * 2)

    asyncio.run(story())


@pytest.mark.parametrize("base", ["/etc/passwd", "/" + "x" * 5000, "/proc/self/mem/x"])
def test_a_directory_that_is_none_is_told(base: str) -> None:
    """``--run-dir`` may name anything: a directory that is not there has no VMs, another is
    refused.
    """
    with pytest.raises(LaunchError, match="expected a directory of this user's own"):
        list(running(Path(base)))
    assert list(running(Path("/no/such/directory"))) == []


def test_a_directory_of_anothers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user who names root's directory is refused."""

    def denied(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", denied)  # root is denied nothing
    with pytest.raises(LaunchError, match="Permission denied: expected a directory"):
        list(running(tmp_path))


def test_one_that_ended_while_it_was_looked_for_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that is gone by the time it is to be told is no failure."""
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / NAME).write_text(json.dumps(RELEASED))

    def gone(_: int) -> int:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    monkeypatch.setattr(os, "pidfd_open", gone)
    assert main("stop", ["db1", "--run-dir", str(tmp_path)]) == 0


def test_brackets_without_end_are_no_command(tmp_path: Path) -> None:
    """JSON that is nested too deep to be read is a mistake in the command line."""
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / NAME).write_text(json.dumps(RELEASED))
    words = ["db1", "query-status", "[" * 100_000, "--run-dir", str(tmp_path)]
    with pytest.raises(UsageError, match="JSON: "):
        main("qmp", words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": float("inf")}, {"since": float("nan")}, {"since": 10**400}, {"since": -1.0},
        {"noted": float("inf")}, {"patience": float("inf")}, {"patience": 1e300},
        {"dedicated": "x"}, {"cpus": "4-"}, {"exclusive": "5-4"}, {"since": "5"},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_listed_and_keeps_no_other_vm_from_starting(
    tmp_path: Path, wrong: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as one that cannot be read: its VM is listed as long as its lock is held, and a
    command for it names the file."""
    path = tmp_path / "db1" / NAME
    with RunDir(tmp_path, "db1"):
        path.write_text(json.dumps(RELEASED | wrong))
        held, told = recorded(tmp_path, System())
        is_told = bool(wrong.keys() & {"dedicated", "exclusive"})  # of times it needs to know none
        assert (len(held), len(told)) == (int(not is_told), int(is_told))
        assert main("ps", ["--run-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == ["db1", "unknown"]
        with pytest.raises(LaunchError, match=f"^{path}: found no record that can be read"):
            main("stop", ["db1", "--run-dir", str(tmp_path)])
    assert list(listed(tmp_path)) == []


def test_what_happens_in_a_state_does_not_begin_it_anew() -> None:
    """The time since a VM runs stays when something is told of it; a new state begins at nought."""
    record = VmRecord(name="db1", source="db1.toml")
    steps = (
        (Step(VmState.RUNNING, "", 100), 100, 100),
        (Step(VmState.RUNNING, "nothing moved", 160), 100, 160),
        (Step(VmState.PAUSED, "stopped", 170), 170, 170),
    )
    for step, since, noted in steps:
        record = record.after(step)
        assert (record.state, record.why, record.since, record.noted) == (
            step.state, step.why, since, noted,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "db1: running for 2 h"),
        ({"noted": 0.0, "why": "moved"}, "db1: running for 2 h (moved)"),
        ({"noted": 180, "why": "moved"}, "db1: running for 2 h (moved, 3 min ago)"),
    ],
    ids=["nothing", "a record of before", "a change"],
)
def test_a_change_is_told_beside_the_state(
    tmp_path: Path, more: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With when it was, where that is known."""
    now = time.time()
    document = {**RELEASED, "since": now - 7201, **more}
    if document.get("noted"):
        document["noted"] = now - document["noted"] - 1
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / NAME).write_text(json.dumps(document))
    assert main("status", ["db1", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_vm_of_another_user_is_said_to_be_his(tmp_path: Path) -> None:
    """Root who looks into another's directory reads no record there, and is told whose it is."""
    path = tmp_path / "db1" / NAME
    nobody = pwd.getpwnam("nobody").pw_uid
    with RunDir(tmp_path, "db1"):
        for owner, name in ((nobody, f"nobody (uid {nobody})"), (4_000_000, "uid 4000000")):
            path.write_text(json.dumps(RELEASED))
            os.chown(path, owner, -1)
            expected = f"{path}: found a VM of {name}, expected one of root (uid 0): "
            with pytest.raises(LaunchError) as told:
                main("status", ["db1", "--run-dir", str(tmp_path)])
            assert str(told.value).startswith(expected)
            _, problems = recorded(tmp_path, System())
            assert [problem.startswith(expected) for problem in problems] == [True]


def test_what_holds_no_lock_is_not_listed(tmp_path: Path) -> None:
    """Anything may lie among the VMs' directories."""
    (tmp_path / "left").mkdir()
    (tmp_path / ("x" * 255)).mkdir()
    (tmp_path / ".link.lock").symlink_to("/etc/passwd")
    (tmp_path / "link").write_text("")
    assert list(listed(tmp_path)) == []


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../db1", "", "."])
def test_a_name_that_no_vm_has_is_told(tmp_path: Path, name: str) -> None:
    """The name may be anything."""
    with pytest.raises(LaunchError, match=r"^found no VM .* expected one of: none$"):
        find(tmp_path, name)


def test_a_process_that_follows_no_vm_is_named(tmp_path: Path) -> None:
    """``reload --pid`` says which process was asked for, and which there are."""
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / NAME).write_text(json.dumps(RELEASED))
    expected = f"^--pid: found no VM whose supervisor is process 77, expected one of: {os.getpid()}"
    with pytest.raises(LaunchError, match=expected):
        main("reload", ["--pid", "77", "--run-dir", str(tmp_path)])


PRERM = Path(__file__).parents[3] / "debian/kvmhooks.prerm"


@pytest.mark.parametrize(
    ("listing", "code", "message"),
    [
        ("echo 'name state'", 0, ""),
        ("echo 'name state'; echo 'db1 running'", 1, "db1 running"),
        ("echo 'no such thing' >&2; exit 3", 3, "no such thing"),
    ],
    ids=["none", "one", "failed"],
)
def test_removing_the_package_needs_to_know_what_runs(
    tmp_path: Path, listing: str, code: int, message: str
) -> None:
    """The package's script fails with what `kvm-launch ps` says when that fails."""
    (tmp_path / "run/.db1.lock").mkdir(parents=True)
    for name, body in (("kvm-launch", listing), ("kvmhooks", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = PRERM.read_text().replace("/run/kvm-launch", str(tmp_path / "run"))
    done = subprocess.run(
        ["/bin/sh", "-c", script, "prerm", "remove"], capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
