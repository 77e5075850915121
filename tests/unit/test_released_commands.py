"""Every command of the released version a92f6b5 works: those of its documents, and each option.

``tests/releases/a92f6b5/commands`` has the commands of that version's README.md, docs, manual pages
and ``--help``, then every option of every verb, one a line. Before each is the exit code with which
that version ended in a folder as ``here`` makes it, or ``-`` where a command asks libvirt, boots a
guest or changes a card: of those only the words are parsed. ``documents.json`` beside it has the
keys of what its ``--json`` printed, ``vms`` its examples.
"""

from __future__ import annotations

import importlib
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvm_launch.commands import main as kvm_launch
from kvm_launch.commands import verbs as launcher_verbs
from kvmhooks import load_vm
from kvmhooks.cli import main as kvmhooks
from kvmhooks.errors import UsageError
from kvmhooks.signals import SIGNALS
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import write_host
from tests.isolate_model.world import Vm

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "tests/releases/a92f6b5"
HARMLESS = {
    **dict.fromkeys(("argv", "claim", "plan", "tune", "xml"), ("--host", "machine")),
    **dict.fromkeys(("devices", "host"), ("--root", "machine")),
    **dict.fromkeys(("hooks", "install-units", "reconcile", "replan"), ("--root", "machine")),
    **dict.fromkeys(("simulate", "status", "undo"), ("--root", "machine")),
}
"""The words that keep a verb of kvmhooks from this machine."""

WRITERS = {"hooks", "install-units", "reconcile", "simulate", "status", "undo"}
"""The verbs that get a host of their own: they write below the root, or follow no link to it."""

VM = 'name = "{}"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'


def released() -> Iterator[tuple[str, str]]:
    """Yield each command of the release with its exit code."""
    for line in (RELEASE / "commands").read_text().splitlines():
        if not line.startswith("#"):
            code, _, command = line.partition(" ")
            yield command, code


COMMANDS = dict(released())


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name."""
    folder = tmp_path_factory.mktemp("documents")
    gpu = FakePci("0000:65:00.0", class_="0x030000", driver="nouveau", iommu_group=1)
    host = write_host(
        folder / "machine",
        cores=8,
        memory_mib=8192,
        pci=(gpu,),
        files={"usr/sbin/libvirtd": ""},
    )
    (host / "usr/sbin/libvirtd").chmod(0o755)
    for name in ("tree", "TREE"):
        (folder / name).symlink_to("machine")
    with tarfile.open(folder / "machine.tar.xz", "w:xz") as archive:
        archive.add(host, "machine")
    for name in ("vm", "db", "web", "a", "b", "folder/c", "vms/d"):
        file = folder / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(VM.format(file.stem))
    (folder / "db1.toml").write_text(f'{VM.format("db1")}cpu.placement = "dedicated"\n')
    (folder / "claims.json").write_text("[]")
    (folder / "capabilities.xml").write_text("<domainCapabilities/>")
    for name in ("kvm-launch", "kvmhooks"):
        (folder / name).touch(0o755)
    (folder / "dom.xml").write_bytes((ROOT / "tests/golden/domains/running.xml").read_bytes())
    (folder / "web.xml").write_bytes(Vm("web", CpuSet.parse("6-7"), CpuSet.parse("0-1")).xml)
    return folder


@pytest.fixture
def here(tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own with the same, and with a domain on the standard input."""
    for entry in documents.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    domain = io.BytesIO((tmp_path / "dom.xml").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(domain))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "kvmhooks")])  # whose neighbours units start
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def words_of(command: str) -> list[str]:
    """Return the words of a command, with those that keep it from this machine."""
    program, *words = shlex.split(command)
    if program == "kvmhooks":
        more = HARMLESS.get(words[0], ())
    elif words[0] in {*kvm_launch.VERBS, kvm_launch.MIGRATE}:
        more = ("--run-dir", "run")
    else:
        more = ("--host", "machine")
    if {"-h", "--help", "--version", *more[:1]}.intersection(words):
        return [program, *words]
    return [program, *words, *more]


def run(command: str) -> int:
    """Run a command, kept from this machine, and return its exit code."""
    program, *words = words_of(command)
    if words[0] in WRITERS:
        host = Path("machine").resolve()
        Path("machine").unlink()
        shutil.copytree(host, "machine", symlinks=True)
    if words[0] == "import":
        Path("db.toml").unlink()  # it would be in the way
    try:
        return kvmhooks.main(words) if program == "kvmhooks" else kvm_launch.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def parse(command: str) -> None:
    """Parse a command's words as its verb does. Raises ``SystemExit`` and ``UsageError``."""
    program, verb, *words = shlex.split(command)
    if program == "kvmhooks":
        module, _ = kvmhooks.VERBS[kvmhooks.FORMER.get(verb, verb)]
        importlib.import_module(module).parser_of(verb).parse_args(words)
    elif verb in kvm_launch.VERBS:
        launcher_verbs.parser_of(verb).parse_args(words)
    elif verb == kvm_launch.MIGRATE:
        kvm_launch.parser_of_migrate().parse_args(words)
    else:
        kvm_launch.parser_of().parse_args(kvm_launch._with_uri([verb, *words]))


HOLLOW = (
    "kvmhooks host --unredacted",
    "kvmhooks replan - --connect qemu:///system",
    "kvmhooks replan - --dry-run",
    "kvmhooks replan - --json",
    "kvmhooks tune dom.xml --connect qemu:///system",
)
"""The commands with an option that changed nothing: a usage error now (``kvmhooks.cli.beside``)."""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", HOLLOW)
def test_an_option_without_effect_is_refused(command: str) -> None:
    """None of them was in a document of the release; without the option they end as they did."""
    assert COMMANDS[command] == "0"
    assert run(command) == 2


@pytest.mark.parametrize(
    "command", [name for name, code in COMMANDS.items() if code != "-" and name not in HOLLOW]
)
def test_a_command_ends_as_it_did(here: Path, command: str) -> None:
    """On the same host, with the same files, the exit code is the same."""
    assert run(command) == int(COMMANDS[command]), here


@pytest.mark.parametrize("command", [name for name, code in COMMANDS.items() if code == "-"])
def test_the_words_of_a_command_are_known(command: str) -> None:
    """Those of a command that is not harmless, too."""
    parse(command)


@pytest.mark.usefixtures("here")
def test_a_word_that_was_never_there_is_refused() -> None:
    """So that the tests above can fail."""
    assert run("kvmhooks plan vm.toml --no-such-option") == 2
    with pytest.raises((SystemExit, UsageError)):
        parse("kvm-launch --no-such-option vm.toml")


DOCUMENTS = json.loads((RELEASE / "documents.json").read_text())


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_document_keeps_its_keys(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A program that read it finds each key where it was, and a value of its kind.

    The value of a profile's default is of the kind of the key that it is for.
    """
    assert run(command) == 0, here
    now = keys_of(json.loads(capsys.readouterr().out))
    of_any_key = {key: {*kinds} for key, kinds in now.items() if key.endswith(".defaults[].value")}
    lost = {
        key: kinds
        for key, kinds in DOCUMENTS[command].items()
        if kinds != now.get(key) and not {*kinds} <= of_any_key.get(key, set())
    }
    assert lost == {}


def keys_of(document: Any) -> dict[str, list[str]]:
    """Return the path of each value of a document with its kinds; a list's items have one path."""
    found: dict[str, set[str]] = {}

    def walk(value: Any, path: str) -> None:
        found.setdefault(path, set()).add(type(value).__name__)
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for inner in value:
                walk(inner, f"{path}[]")

    walk(document, "")
    return {path: sorted(kinds) for path, kinds in found.items()}


EXAMPLES = {
    **dict.fromkeys(("cloud", "database", "edge", "general", "quickstart", "web"), 0),
    **dict.fromkeys(("compute", "confidential", "desktop", "network-card", "realtime"), 1),
}
"""The examples and whether this host has what they ask for; one that is not read is 1 as well."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_vm_still(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Each ``vm.toml`` of its examples is read; what the host lacks is told as then."""
    vm = here / f"{name}.toml"
    vm.write_bytes((RELEASE / "vms" / vm.name).read_bytes())
    load_vm(vm)
    assert run(f"kvmhooks plan {vm.name}") == EXAMPLES[name], capsys.readouterr().err


def test_every_example_is_tried() -> None:
    """The table above has all of the folder."""
    assert {vm.stem for vm in (RELEASE / "vms").glob("*.toml")} == EXAMPLES.keys()


HOOK = "from kvmhooks.isolate.hook import command, main; print(callable(command), callable(main))"


def test_the_hook_is_called_by_its_names(here: Path) -> None:
    """``python3 -m kvmhooks.isolate.hook --root`` and the names that other programs import."""
    program = [sys.executable, "-m", "kvmhooks.isolate.hook", "--root", str(here / "machine")]
    domain = (here / "web.xml").read_bytes()
    done = subprocess.run(
        [*program, "web", "release", "end", "-"],
        input=domain,
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    names = subprocess.run(
        [sys.executable, "-c", HOOK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert names.stdout == "True True\n"
