"""The programs beside QEMU: what they are, how they get their files, what is said of their ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.prepare import helper_programs, persistent_state
from kvm_launch.prepare.checks import check
from kvm_launch.prepare.helper_spec import Helper, HelperPlace, Program, helpers_of, needed
from kvm_launch.prepare.user import User
from kvm_launch.spawn import privileges
from kvm_launch.spawn.helper_processes import HelperProcesses, started_helpers
from kvm_launch.spawn.taps import macvtap_name
from kvmhooks.errors import QemuError, SpecError
from kvmhooks.placement import plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.qemu.passed_files import handles, needs_bridge_helper
from kvmhooks.qemu.run_dir import RunDir
from kvmhooks.qemu.sockets import inherited
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.golden.cases import golden_host, golden_plan

NOBODY = User("nobody", 65534, 65534, (65534,))
SWITCH = User("switch", 990, 990, (990,))
HELPED = """
    name = "web"
    cpu.vcpus = 1
    memory.size = "1GiB"
    tpm.model = "crb"
    net = [{type = "user"}, {type = "passt"}]
    filesystem = [{path = "/srv", tag = "srv", readonly = true}]
    helper = [
        {command = ["/bin/switch", "-x"], socket = "/run/vu.sock"},
        {command = ["/bin/other"], user = "switch"},
    ]
"""
FEATURES = frozenset({"separate-options"})


def place(features: frozenset[str] = frozenset(), *, is_root: bool = True) -> HelperPlace:
    """A host that has everything."""
    names = ("virtiofsd", "swtpm", "passt", "unshare")
    return HelperPlace(
        programs={name: Program(path=Path("/p", name), features=features) for name in names},
        user=NOBODY if is_root else None,
        users={"switch": SWITCH},
        is_root=is_root,
        state=Path("/s/tpm"),
    )


def spec(text: str = HELPED) -> VmSpec:
    """A VM that needs helpers."""
    return parse_vm(text, folder=Path("/"), source="web.toml")


def test_a_comma_in_the_place_of_a_tpm_is_refused() -> None:
    """The text behind it would be another option of swtpm (its ``--tpmstate``)."""
    least = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\ntpm.model = "crb"\n'
    vm = spec(least + 'tpm.state = "/s/a,mode=0666"')
    found = [
        str(problem) for problem in helper_programs.problems(vm, None) if problem.at == "tpm.state"
    ]
    expected = "no comma: swtpm takes it for the end of the name"
    assert found == [f"tpm.state: found '/s/a,mode=0666', expected {expected}"]


def test_what_is_started_for_roots_vm() -> None:
    """virtiofsd as root, the TPM and passt as QEMU's user, others as they say."""
    assert helpers_of(spec(), place(FEATURES)) == (
        Helper(
            at="filesystem[0]",
            name="virtiofsd",
            command=("/p/virtiofsd", "--fd=100", "--shared-dir", "/srv", "--readonly"),
            socket="fs0",
            link="listening",
        ),
        Helper(
            at="tpm.model",
            name="swtpm",
            command=(
                *("/p/swtpm", "socket", "--tpm2", "--terminate"),
                *("--tpmstate", "dir=/s/tpm,mode=0600", "--ctrl", "type=unixio,fd=100"),
            ),
            socket="tpm",
            link="listening",
            user=NOBODY,
        ),
        Helper(
            at="net[1]",
            name="passt",
            command=("/p/passt", "--foreground", "--quiet", "--fd", "100"),
            socket="net1",
            link="connected",
            user=NOBODY,
        ),
        Helper(
            at="helper[0]",
            name="switch",
            command=("/bin/switch", "-x"),
            path=Path("/run/vu.sock"),
            user=NOBODY,
        ),
        Helper(at="helper[1]", name="other", command=("/bin/other",), user=SWITCH),
    )


def test_an_older_virtiofsd_and_an_ordinary_user() -> None:
    """The older one has one option for all; without root it is in a user namespace."""
    (shared, *_) = helpers_of(spec(), place(is_root=False))
    alone = ("/p/unshare", "-U", "-r", "--")
    assert shared.command == (*alone, "/p/virtiofsd", "--fd=100", "-o", "source=/srv")
    assert shared.left_out


@pytest.mark.parametrize("is_root", [True, False])
def test_what_is_needed_is_what_is_started(is_root: bool) -> None:  # noqa: FBT001 -- a parameter
    """Every program of a command is one that was looked for."""
    wanted = set(needed(spec(), is_root=is_root).values())
    there = {word.removeprefix("/p/") for helper in helpers_of(spec(), place(is_root=is_root))
             for word in helper.command if word.startswith("/p/")}  # fmt: skip
    assert there == wanted


def test_qemu_inherits_sockets_in_the_place_of_paths() -> None:
    """Of a chardev and of a netdev; every other word stays, and a name that is not there fails."""
    decided = golden_plan("helped", "laptop+new")
    argv = qemu_argv(decided)
    stream = '{"id":"net0-host","type":"stream","addr":'
    changed = inherited(argv, decided, {"fs0": 7, "tpm": 8, "net0": 9})
    assert [(old, new) for old, new in zip(argv, changed, strict=True) if old != new] == [
        (
            f'{stream}{{"type":"unix","path":"/run/kvmhooks/helpers/helped/net0.sock"}}}}',
            f'{stream}{{"type":"fd","str":"9"}}}}',
        ),
        (
            "socket,id=fs0-socket,path=/run/kvmhooks/helpers/helped/fs0.sock",
            "socket,id=fs0-socket,fd=7",
        ),
        (
            "socket,id=tpm-socket,path=/run/kvmhooks/helpers/helped/tpm.sock",
            "socket,id=tpm-socket,fd=8",
        ),
    ]
    with pytest.raises(ValueError, match=r"fs1\.sock: found in 0 of QEMU's arguments"):
        inherited(argv, decided, {"fs1": 7})


@given(st.permutations(range(6)))
def test_descriptors_are_moved_whatever_their_numbers(order: list[int]) -> None:
    """A child knows each file by its new number, also where that is another file's old one."""
    start_pipe, opening = os.pipe()
    files = [os.memfd_create(f"{at}") for at in range(6)]
    try:
        for at, file in enumerate(files):
            os.write(file, str(at).encode())
        os.write(opening, b"\1")
        moves = {files[at]: files[to] for at, to in enumerate(order)}
        names = " ".join(f"/dev/fd/{file}" for file in files)
        output = subprocess.run(
            [*privileges.command(start_pipe, gains=False, ids="", moves=moves),
             "/bin/sh", "-c", f"cat {names}"],
            pass_fds=(start_pipe, *files), stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
    finally:
        for file in (start_pipe, opening, *files):
            os.close(file)
    assert output.decode() == "".join(str(order.index(at)) for at in range(6))


def crewed(
    base: Path, helpers: list[Helper], work: Callable[[HelperProcesses], Coroutine[Any, Any, str]]
) -> str:
    """Return what ``work`` with the helpers gives."""

    async def run() -> str:
        with RunDir(base / "run", "vm") as run_dir:
            async with started_helpers(
                helpers, run_dir, CpuSet([min(os.sched_getaffinity(0))])
            ) as helper_processes:
                return await work(helper_processes)

    return asyncio.run(run())


def shell(script: str, **more: Any) -> Helper:
    """A helper that is a few lines of shell."""
    return Helper(at="helper[0]", name="sh", command=("/bin/sh", "-c", script), **more)


def test_a_helper_is_where_it_belongs_before_it_begins(tmp_path: Path) -> None:
    """On its CPUs, in a session of its own, gaining nothing, and nothing of ours is open."""
    script = "grep -E 'NoNewPrivs|Cpus_allowed_list' /proc/self/status; ls /proc/self/fd; exit 3"

    async def work(helper_processes: HelperProcesses) -> str:
        for process in helper_processes.processes:
            process.release(helper_processes.cpus)
        return await helper_processes.first_exit()

    first = min(os.sched_getaffinity(0))
    output = crewed(tmp_path, [shell(script)], work).splitlines()
    assert output[0] == "helper[0]: sh ended while the VM ran (status 3)"
    assert [line.split() for line in output[1:3]] == [
        ["NoNewPrivs:", "1"],
        ["Cpus_allowed_list:", str(first)],
    ]
    assert len(output[3:]) == 5  # 0, 1, 2, the VM's lock, and the folder that ls reads


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sleep 60", r"helper\[0\]: sh does not listen at .*own.sock after 0.3 s"),
        ("echo why; exit 5", r"sh ended before QEMU was started \(status 5\)\n  why"),
        ("kill -9 $$", r"sh ended before QEMU was started \(signal 9\)"),
    ],
)
def test_a_helper_that_is_not_ready_is_told(tmp_path: Path, script: str, message: str) -> None:
    """With a bound on the time that it has; it is gone afterwards."""

    async def work(helper_processes: HelperProcesses) -> str:
        await helper_processes.release(0.3)
        return ""

    with pytest.raises(QemuError, match=message):
        crewed(tmp_path, [shell(script, path=tmp_path / "own.sock")], work)


def test_one_that_does_not_want_to_end_is_killed_with_its_children(tmp_path: Path) -> None:
    """It ignores SIGTERM and is killed with its process group."""
    script = "trap '' TERM; sleep 61 & echo $! > child; while :; do sleep 62; done"
    pid = tmp_path / "child"

    async def work(helper_processes: HelperProcesses) -> str:
        await helper_processes.release()
        while not (pid.exists() and pid.read_text().strip()):  # noqa: ASYNC110 -- a file
            await asyncio.sleep(0.02)
        return pid.read_text().strip()

    there = crewed(tmp_path, [shell(f"cd {tmp_path}; {script}")], work)
    state = Path(f"/proc/{there}/status")
    assert not state.exists() or "State:\tZ" in state.read_text()


def test_programs_that_are_missing_are_told(tmp_path: Path) -> None:
    """By name, with where they were looked for."""
    assert helper_programs.found(["swtpm"], {"swtpm": (tmp_path / "swtpm",)}) == {}
    text = (
        'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
        'filesystem = [{path = "none", tag = "a"}]\nhelper = [{command = ["/none"]}]\n'
        'tpm = {model = "crb", state = "no/tpm"}\n'
        'boot = {firmware = "uefi", variables = "no/vars", template = "none.fd"}'
    )
    with pytest.raises(SpecError) as raised:
        check(parse_vm(text, folder=tmp_path))
    assert [str(problem) for problem in raised.value.problems if "install" not in str(problem)][
        -5:
    ] == [
        f"filesystem[0].path: found no folder '{tmp_path}/none', expected a folder to share",
        "helper[0].command: found '/none', expected a program that can be run",
        f"tpm.state: found no folder '{tmp_path}/no', expected one to make the folder in",
        f"boot.template: found no file '{tmp_path}/none.fd', expected OVMF's empty variables",
        f"boot.variables: found no folder '{tmp_path}/no', expected one to make the variables in",
    ]


TAPS = """
    name = "web"
    cpu.vcpus = 1
    memory.size = "1GiB"
    machine.accel = "kvm"
    net = [
        {type = "bridge", device = "br0"},
        {type = "bridge", device = "br0", queues = 2, vhost = true},
        {type = "macvtap", device = "eth0"},
    ]
"""


def test_files_have_their_numbers_and_the_others_need_no_helper() -> None:
    """A file for each queue and its vhost; a plain bridge's port is the setuid helper's."""
    decided = plan(spec(TAPS), golden_host("laptop"))
    assert [(each.number, each.device, each.kind) for each in handles(decided)] == [
        (100, "net1", "tap"),
        (101, "net1", "tap"),
        (102, "net1", "vhost"),
        (103, "net1", "vhost"),
        (104, "net2", "tap"),
    ]
    assert needs_bridge_helper(decided)
    backends = [json.loads(value) for name, value in pairwise(qemu_argv(decided))
                if name == "-netdev"]  # fmt: skip
    assert [{key: backend[key] for key in backend if key.endswith(("fd", "fds", "br"))}
            for backend in backends] == [
        {"br": "br0"},
        {"fds": "100:101", "vhostfds": "102:103"},
        {"fd": "104"},
    ]  # fmt: skip
    opened = attrs.evolve(decided.spec, net=decided.spec.net[1:])
    assert not needs_bridge_helper(plan(opened, golden_host("laptop")))


@given(st.uuids(), st.integers(0, 99))
def test_a_macvtaps_name_is_always_the_same_and_fits(uuid: UUID, at: int) -> None:
    """At most 15 bytes (IFNAMSIZ - 1), and another for another interface."""
    name = macvtap_name(str(uuid), at)
    assert len(name) == 15
    assert name == macvtap_name(str(uuid), at) != macvtap_name(str(uuid), at + 1)


def test_libvirt_starts_no_helpers_that_it_does_not_know() -> None:
    """A VM that names some is refused there."""
    text = 'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\nhelper = [{command = ["/bin/sh"]}]'
    with pytest.raises(SpecError, match=r"helper: found .*libvirt starts no such"):
        check(spec(text), has_libvirt=True)


def test_what_is_kept_is_made_once_and_for_one_user_alone(tmp_path: Path) -> None:
    """A second look finds it as it is."""
    text = 'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\ntpm = {model = "crb", state = "t"}'
    vm = parse_vm(text, folder=tmp_path)
    assert persistent_state.make(vm, None) == [tmp_path / "t"]
    assert (tmp_path / "t").stat().st_mode & 0o7777 == 0o700
    assert persistent_state.make(vm, None) == []
    assert list(persistent_state.problems(vm, None)) == []
    (tmp_path / "t").rmdir()
    (tmp_path / "t").symlink_to(tmp_path)
    assert [problem.at for problem in persistent_state.problems(vm, None)] == ["tpm.state"]


def test_a_child_that_keeps_a_helpers_output_leaves_no_word(tmp_path: Path) -> None:
    """A helper that became a daemon is over for us: nothing of it is left to be closed later."""
    script = f"setsid sleep 60 & echo $! >{tmp_path}/child; exit 0"

    async def work(helper_processes: HelperProcesses) -> str:
        helper_processes.processes[0].release(helper_processes.cpus)
        reason = await helper_processes.first_exit()
        assert helper_processes.processes[0].transport.is_closing()
        return reason

    try:
        assert "status 0" in crewed(tmp_path, [shell(script)], work)
        gc.collect()  # a warning is an error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
