"""kvm-launch as a process: its mistakes, its exit codes, and what it prints without starting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import attrs
import pytest

from kvm_launch.commands.main import (
    EXAMPLES,
    PRINTABLE,
    _with_uri,
    parser_of,
    parser_of_migrate,
)
from kvm_launch.many.together import _show
from kvm_launch.options import LaunchOptions
from kvmhooks.qemu.run_dir import RunDir
from kvmhooks.show.plan_text import picture
from kvmhooks.show.printed import FORMS
from kvmhooks.values import CpuSet
from kvmhooks.version import VERSION
from tests.fakehost import write_host
from tests.golden.cases import golden_plan

ROOT = Path(__file__).parents[3]
VM = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "64MiB"\n'
OWN = f'{VM}cpu.placement = "dedicated"\nisolation.exclusive = true\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a VM and a captured host without KVM."""
    (tmp_path / "vm.toml").write_text(VM)
    write_host(tmp_path / "host", cores=2, kvm=None)
    return tmp_path


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run kvm-launch there; its run directory is in the folder, with this machine for a host."""
    run_dir = [] if "--host" in arguments else ["--run-dir", "run"]
    return subprocess.run(
        [sys.executable, "-m", "kvm_launch.commands.main", *run_dir, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/launcher"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


USAGE = [
    ((), "the following arguments are required: VM.toml"),
    (("vm.toml", "--print", "json"), "argument --print: invalid choice: 'json'"),
    (("vm.toml", "--accel", "xen"), "argument --accel: invalid choice: 'xen'"),
    (("vm.toml", "--timeout", "soon"), "argument --timeout: found 'soon', expected seconds"),
    (("vm.toml", "--timeout", "0"), "argument --timeout: found '0', expected seconds"),
    (("vm.toml", "--timeout", "nan"), "argument --timeout: found 'nan', expected seconds"),
    (("vm.toml", "--dry"), "unrecognized arguments: --dry"),
    (("vm.toml", "--host", "host"), "--host: another host's plan cannot run here: add --print"),
    (("vm.toml", "--detach", "--json"), "--detach: found --json beside it, expected one of the"),
    (("vm.toml", "--detach", "--libvirt"), "--detach: found --libvirt beside it, expected one of"),
    (("vm.toml", "--console", "--dry-run"), "--console: found --dry-run beside it, expected one"),
    (("vm.toml", "--console"), "--console: found no terminal to type at, expected one"),
    (("vm.toml", "--print", "plan", "--dry-run"), "--dry-run: found --print beside it, expected"),
    (("vm.toml", "--print", "plan", "--quiet"), "--quiet: found --print beside it, expected one"),
    (
        ("vm.toml", "--print", "plan", "--host", "host", "--run-dir", "run"),
        "--run-dir: found --host beside it, expected one of the two",
    ),
    (("vm.toml", "--timeout", "9", "--dry-run"), "--timeout: found --dry-run beside it, expected"),
    (("vm.toml", "host", "--json"), "--json: found several VMs, expected the file of one"),
    (("vm.toml", "host"), "host: found no NAME.toml in it, expected one for each VM"),
    (("host",), "host: found no NAME.toml in it, expected one for each VM"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=range(len(USAGE)))
def test_what_is_no_command_is_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    """A command line that does not say what to do is told so, and nothing is made."""
    run = launch(folder, *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "vm.toml: found Invalid value (at end of document), expected TOML\n"),
        (
            VM + "cpu.vcpu = 2",
            'vm.toml: cpu.vcpu: found an unknown key, expected "vcpus"?\n',
        ),
        (
            VM + 'machine.emulator = "qemu"\nboot.kernel = "k"\n[[disk]]\npath = "a.img"',
            (
                "vm.toml: boot.kernel: found no file '{}/k', expected a file that can be read\n"
                "vm.toml: disk[0].path: found no file '{}/a.img', expected an image to read and "
                "write\n"
            ),
        ),
        (
            VM + 'machine.emulator = "qemu"',
            "vm.toml: machine.emulator: found '{}/qemu', expected a program that can be run\n",
        ),
    ],
    ids=range(4),
)
def test_what_is_refused_is_1(folder: Path, text: str, message: str) -> None:
    """A VM that cannot be is refused with its places; nothing is started, nothing is made."""
    (folder / "vm.toml").write_text(text)
    run = launch(folder, "vm.toml")
    assert (run.returncode, run.stdout, run.stderr) == (1, "", message.format(folder, folder))
    assert not (folder / "run").exists()


def test_a_dry_run_of_a_vm_that_runs_is_refused(folder: Path) -> None:
    """In the words of its start, which it says that it checks; not once the VM has ended."""
    message = "name: found 'a', expected one that does not run already\n"
    with RunDir(folder / "run", "a"):
        for words in (("--dry-run",), ()):
            run = launch(folder, "vm.toml", "--quiet", *words)
            assert (run.returncode, run.stdout, run.stderr.endswith(message)) == (1, "", True)
    assert launch(folder, "vm.toml", "--dry-run", "--quiet").returncode == 0


def test_what_does_not_fit_is_1(folder: Path) -> None:
    """More dedicated vCPUs than there are whole free cores are refused with what there is."""
    (folder / "vm.toml").write_text(VM + 'cpu.placement = "dedicated"')
    run = launch(folder, "vm.toml", "--print", "plan", "--host", "host")
    assert (run.returncode, run.stdout, run.stderr) == (
        1,
        "",
        (
            "cpu.vcpus: found 2 dedicated, which take 2 CPUs, expected at most 1: free are 1 CPU "
            "on node 0 (CPUs 0 are kept for the host); shared vCPUs would fit on node 0\n"
        ),
    )


@pytest.mark.parametrize("what", PRINTABLE)
def test_what_is_printed_as_json_is_json(folder: Path, what: str) -> None:
    """Each form is one JSON value with ``--json``, and nothing but it is on standard output."""
    run = launch(folder, "vm.toml", "--print", what, "--json", "--host", "host")
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout)
    assert not (folder / "run").exists()


def test_a_dry_run_starts_nothing(folder: Path) -> None:
    """The plan is shown, with its reasons, and no directory is made."""
    run = launch(folder, "vm.toml", "--dry-run", "--host", "host")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "a: 2 vCPUs (2 cores x 1 thread), 64MiB, tcg, CPU max",
        "thread    cell  planned CPUs",
        "vCPU 0    0     0-1",
        "vCPU 1    0     0-1",
        "emulator        0-1",
        "cell 0: vCPUs 0-1, 64MiB in pages of 4KiB from node 0 (preferred)",
        "why: 2 vCPUs float over CPUs 0-1, shared with whatever else runs there",
        "why: memory in ordinary pages, cell 0 from node 0",
        "why: TCG, QEMU's own emulation: this host has no working /dev/kvm",
        "why: CPU model max: TCG has no host model",
    ]
    assert not (folder / "run").exists()


def test_a_dry_run_as_json_is_the_plan(folder: Path) -> None:
    """On the standard output nothing else; what is for people is on the other."""
    dry = launch(folder, "vm.toml", "--dry-run", "--json", "--host", "host")
    plan = launch(folder, "vm.toml", "--print", "plan", "--json", "--host", "host")
    assert (dry.returncode, dry.stdout) == (0, plan.stdout)
    assert json.loads(dry.stdout)["name"] == "a"
    assert dry.stderr.startswith("a: 2 vCPUs ")


@pytest.mark.parametrize("is_quiet", [False, True])
def test_several_plans_are_shown_unless_quietly(
    is_quiet: bool,  # noqa: FBT001 -- a parameter
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Warnings are told either way."""
    plan = attrs.evolve(golden_plan("tiny", "laptop"), warnings=("a is left out",))
    _show(LaunchOptions(is_quiet=is_quiet), [plan])
    out = capsys.readouterr().out
    quiet = "warning: tiny: a is left out\n"
    assert out == (quiet if is_quiet else f"{picture(plan)}\n")


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_a_dry_run_names_units_that_could_not_start(folder: Path, kind: str) -> None:
    """Those whose CPUs are all the VM's own, by the unit files of the host; of an archive nothing
    but the host is read."""
    host = write_host(folder / "four", cores=4)
    (folder / "own.toml").write_text(OWN)
    claim = launch(folder, "own.toml", "--print", "claim", "--json", "--host", "four")
    assert claim.returncode == 0, claim.stderr
    own = CpuSet.parse(json.loads(claim.stdout)["exclusive"])
    units = host / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for cpu in range(4):
        (units / f"u{cpu}.service").write_text(f"[Service]\nCPUAffinity={cpu}\n")
    (units / "most.service").write_text("[Service]\nCPUAffinity=0-3\n")
    if kind == "archive":
        with tarfile.open(folder / "four.tar", "w") as archive:
            archive.add(host, ".")
    run = launch(
        folder, "own.toml", "--dry-run", "--host", "four.tar" if kind == "archive" else "four"
    )
    assert run.returncode == 0, run.stderr
    named = ", ".join(f"u{cpu}.service ({cpu})" for cpu in own)
    what = "units that cannot start while VMs own all CPUs of their CPUAffinity="
    expected = [f"warning: {what} (215/CPUAFFINITY): {named}"] if kind == "directory" else []
    warnings = [line for line in run.stdout.splitlines() if "systemd" in line or what in line]
    assert warnings == expected


DRAWS = {
    *("kvmhooks.host.drawing", "kvmhooks.host.picture", "kvmhooks.show.plan_map"),
    *("kvmhooks.show.plan_text", "kvmhooks.show.table"),
    *("kvm_launch.tell.show", "kvm_launch.tell.tables", "rich"),
}
"""The modules that are there to draw for people."""


@pytest.mark.parametrize(
    ("program", "drawn"),
    [
        ("import kvm_launch.life.launch, kvm_launch.many.together", set()),
        ("main(['vm.toml', '--print', 'argv', '--host', 'host'])", set()),
        ("main(['vm.toml', '--quiet', '--dry-run', '--host', 'host'])", set()),
        (
            "main(['vm.toml', '--dry-run', '--host', 'host'])",
            {"kvmhooks.show.plan_text", "kvmhooks.show.table"},
        ),
    ],
    ids=["what starts QEMU", "its arguments", "a quiet start", "a plan that is shown"],
)
def test_nothing_that_draws_is_loaded_before_there_is_something_to_draw(
    folder: Path, program: str, drawn: set[str]
) -> None:
    """QEMU's start waits for no table: that is loaded when there is one to show."""
    words = "import sys; from kvm_launch.commands.main import main"
    run = subprocess.run(
        [sys.executable, "-c", f"{words}; {program}; print(*sys.modules, file=sys.stderr)"],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/launcher"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    loaded = set(run.stderr.split())
    assert "kvmhooks.placement.plan" in loaded
    assert loaded & DRAWS == drawn


def test_the_version_is_told(folder: Path) -> None:
    """``--version`` is one line."""
    run = launch(folder, "--version")
    assert (run.returncode, run.stdout) == (0, f"kvm-launch {VERSION}\n")


def test_the_help_has_examples() -> None:
    """``--help`` ends in examples and exit codes, on lines that fit a terminal."""
    lines = parser_of().format_help().splitlines()
    assert EXAMPLES.splitlines() == lines[-len(EXAMPLES.splitlines()) :]
    assert max(map(len, lines)) <= 96


@pytest.mark.parametrize(
    "words", ["--dry-run", "--print xml", "--libvirt", "--host host", "--json", "other.toml"]
)
def test_migrate_takes_what_it_can_do(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help tells nothing else, and what it has not is refused in its own name."""
    parser = parser_of_migrate()
    first, *more = words.split()
    assert first not in parser.format_help()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["vm.toml", first, *more])
    assert capsys.readouterr().err.startswith("usage: kvm-launch migrate [-h]")


def test_what_can_be_printed_is_known_to_both() -> None:
    """The command line offers exactly the forms that there are."""
    assert set(PRINTABLE) == set(FORMS)


def test_libvirt_without_a_uri_is_the_systems() -> None:
    """A bare ``--libvirt`` takes no word that follows it."""
    assert _with_uri(["--libvirt", "vm.toml"]) == ["--libvirt=qemu:///system", "vm.toml"]
    assert _with_uri(["--libvirt=test:///default"]) == ["--libvirt=test:///default"]


@pytest.mark.parametrize(
    "words", [("vm.toml", "--x\x1b]0;pwn\a"), ("vm.toml", "--print", "\x1b[2J")]
)
def test_a_mistake_says_nothing_that_a_terminal_obeys(folder: Path, words: tuple[str, ...]) -> None:
    """argparse quotes the command line, with the usage, and the code is 2."""
    run = launch(folder, *words)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: kvm-launch ")
    assert run.stderr.replace("\n", "").isprintable()


def test_a_help_that_cannot_be_written_is_a_failure(folder: Path) -> None:
    """It is told in words, as with every other output."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [sys.executable, "-m", "kvm_launch.commands.main", "--help"], cwd=folder, stdout=full,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/launcher"}, stderr=subprocess.PIPE,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (run.returncode, run.stderr) == (1, "standard output: No space left on device\n")
