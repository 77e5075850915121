"""Every verb that is given a root, and everything that can stand where a root should."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kvm_launch.commands import main as kvm_launch
from kvmhooks.cli.main import VERBS, main
from kvmhooks.signals import SIGNALS
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm, hostdev
from tests.unit.isolate.test_policy_knobs import BEFORE as FILES

VM = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
NOBODY = 65534


def _missing(root: Path) -> None:
    """Leave it as it is."""


def _file(root: Path) -> None:
    root.write_text("no tar file, and no directory either\n" * 20)


def _tar(root: Path) -> None:
    with tarfile.open(root, "w") as archive:
        archive.add(root.parent, "host", recursive=False)


def _link(root: Path) -> None:
    root.symlink_to(root.name)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "file": _file,
    "tar": _tar,
    "loop": _link,
    "fifo": os.mkfifo,
    "empty": Path.mkdir,
}
READERS = {
    "missing": "cannot be read: No such file or directory",
    "file": "no tar file of a host: found",
    "tar": "holds neither sys nor proc, so it is no host",
    "loop": "cannot be read: Too many levels of symbolic links",
    "fifo": "cannot be read: Not a directory",
    "empty": "holds neither sys nor proc, so it is no host",
}
"""The words of verbs that read a captured host, which may be a tar file."""
KEEPERS = READERS | dict.fromkeys(("file", "tar"), READERS["fifo"])
"""The words of verbs that work on a host."""
WRITERS = {place: message for place, message in KEEPERS.items() if place != "empty"}
"""The words of verbs that install something below a root."""

SAID = {
    "host": READERS,
    "devices": READERS,
    "plan vm.toml": READERS,
    "xml vm.toml": READERS,
    "argv vm.toml": READERS,
    "claim vm.toml": READERS,
    "tune vm.xml": READERS,
    "kvm-launch vm.toml --print plan": READERS,
    "status": KEEPERS,
    "reconcile": KEEPERS,
    "undo --all": KEEPERS,
    "undo a": KEEPERS,
    "simulate vm.xml": KEEPERS,
    "replan -": KEEPERS,
    "hooks status": WRITERS,
    "hooks install": WRITERS,
    "hooks uninstall": WRITERS,
    "install-units": WRITERS,
    "install-units --remove": WRITERS,
}
WITHOUT_A_ROOT = {
    *("completion", "import", "isolate", "man", "profiles", "schema", "vfs"),
}
TABLE = [(verb, place, messages[place]) for verb, messages in SAID.items() for place in messages]


def run(verb: str, root: Path) -> int:
    """Run a verb with a root, in the directory where its documents are."""
    program, *words = verb.split()
    is_host = program in {"plan", "xml", "argv", "claim", "tune", "kvm-launch"}
    words += ["--host" if is_host else "--root", str(root)]
    if program != "kvm-launch":
        return main([program, *words])
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        return kvm_launch.main(words)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a VM in both forms, and with nothing on the standard input."""
    (tmp_path / "vm.toml").write_text(
        'name = "a"\ncpu = {vcpus = 1}\nmemory = {size = "1GiB"}\n[[disk]]\npath = "a.qcow2"\n'
    )
    (tmp_path / "vm.xml").write_bytes(VM.xml)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VM.xml)))
    return tmp_path


def test_every_verb_is_in_the_table() -> None:
    """A verb that takes a root has its place there."""
    assert {verb.split()[0] for verb in SAID} - {"kvm-launch"} == VERBS.keys() - WITHOUT_A_ROOT


@pytest.mark.parametrize(("verb", "place", "message"), TABLE)
def test_a_root_that_is_none_is_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], verb: str, place: str, message: str
) -> None:
    """It names the root, the exit code is 1, nothing is printed as a result, nothing is made."""
    root = here / "root"
    PLACES[place](root)
    before = sorted(here.rglob("*"))
    assert run(verb, root) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{root}: {message}")
    assert told.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize("verb", SAID)
def test_a_root_that_may_not_be_read_is_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """The directory is shut for an ordinary user."""
    root = here / "root"
    root.mkdir(mode=0o700)
    above = [here, *here.parents][:-2]
    modes = [path.stat().st_mode for path in above]
    for path in above:
        path.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        code = run(verb, root)
    finally:
        os.seteuid(0)
        for path, mode in zip(above, modes, strict=True):
            path.chmod(mode)
    told = capsys.readouterr()
    assert (code, told.out, told.err) == (1, "", f"{root}: cannot be read: Permission denied\n")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """8 CPUs, and a process that will be QEMU."""
    plant(Kernel("plain", 8, 3), tmp_path / "root")
    return tmp_path / "root"


LESS = [
    "proc/sys/kernel/osrelease",
    "proc/cmdline",
    "proc/irq",
    "proc/self",
    "proc",
    "sys/devices/system/cpu/online",
    "sys/devices",
    "sys/fs/cgroup",
    "sys",
]


def remove(path: Path) -> None:
    """Take a file, a link or a folder with all in it away."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("gone", LESS)
@pytest.mark.parametrize("verb", ["status", "reconcile", "undo --all", "simulate vm.xml"])
@pytest.mark.usefixtures("here")
def test_a_host_of_which_something_is_gone_is_no_traceback(
    host: Path, capsys: pytest.CaptureFixture[str], verb: str, gone: str
) -> None:
    """It is done without, or one message says which file it is."""
    remove(host / gone)
    code = run(verb, host)
    told = capsys.readouterr()
    assert code in {0, 1}
    if code:
        assert told.err.startswith(str(host)) or told.err.startswith("/"), told.err
        assert told.err.count("\n") == 1


LOOKING = [verb for verb in SAID if SAID[verb] is not WRITERS]
"""The verbs that look at a host."""
RICH = (
    '<kvmhooks:isolation exclusive="yes"/><kvmhooks:power governor="performance" latency="n/a" '
    'boost="yes"/><kvmhooks:memory thp="never" ksm="0"/><kvmhooks:kernel halt_poll="0"/>'
    '<kvmhooks:storage scheduler="none" requests="512"/>'
)
POOL = '<kvmhooks:devices pools="0000:3b:00.0=8"/>'
POWERS = '<kvmhooks:devices functions="0000:3b:00.0/1 vlan=5"/>'
MEDIATED = '<kvmhooks:devices mdevs="c2177883-f1bb-47f0-914d-32a22e3a8804=0000:3b:00.0/nvidia-35"/>'
BOUND = '<kvmhooks:devices managed="yes"/>'
CARD = {
    "sys/bus/pci/devices/0000:3b:00.0/class": "0x020000",
    "sys/bus/pci/devices/0000:3b:00.0/sriov_totalvfs": "8",
    "sys/bus/pci/devices/0000:3b:00.0/sriov_numvfs": "8",
    "sys/bus/pci/devices/0000:3b:00.0/sriov_drivers_autoprobe": "1",
    "sys/bus/pci/devices/0000:3b:00.0/net/eth7/flags": "0x1003",
}


@pytest.mark.parametrize("gone", LESS)
@pytest.mark.parametrize("verb", LOOKING)
@pytest.mark.usefixtures("here")
def test_no_verb_tells_an_error_as_python_does(
    host: Path, capsys: pytest.CaptureFixture[str], verb: str, gone: str
) -> None:
    """It has words for people, or does without what is gone."""
    remove(host / gone)
    code = run(verb, host)
    told = capsys.readouterr()
    assert code in {0, 1}
    assert "Errno" not in told.out + told.err
    assert bool(told.err) or code == 0


ASKED = [
    *((RICH, gone) for gone in ("", *FILES)),
    *((policy, gone) for policy in (POOL, POWERS, MEDIATED, BOUND)
      for gone in ("", *CARD, "sys/bus/pci/devices/0000:3b:00.0")),
]  # fmt: skip
"""A policy, and a file of what it asks for."""


@pytest.mark.parametrize(("policy", "gone"), ASKED)
def test_a_simulated_vm_that_asks_for_much_tells_no_error_as_python_does(
    host: Path, here: Path, capsys: pytest.CaptureFixture[str], policy: str, gone: str
) -> None:
    """Each file of what it asks for is gone, and the whole card."""
    for at, text in (CARD | FILES).items():
        (host / at).parent.mkdir(parents=True, exist_ok=True)
        (host / at).write_text(f"{text}\n")
    if (host / gone).is_dir() and gone:
        shutil.rmtree(host / gone)
    elif gone:
        (host / gone).unlink()
    vm = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy)
    disk = "<disk type='block'><source dev='/dev/sdb'/></disk>"
    vm.devices = f"<devices>{disk}{hostdev('0000:3b:00.0')}</devices>"
    (here / "vm.xml").write_bytes(vm.xml)
    code = run("simulate vm.xml", host)
    told = capsys.readouterr()
    assert (code, told.err.count("\n")) in {(0, 0), (1, 1)}
    assert "Errno" not in told.out + told.err
    assert code == 0 or told.err.startswith(("a: ", str(host))), told.err


@pytest.mark.parametrize("damage", ["", "six", "6", "\u0666.1", "9" * 5000])
@pytest.mark.parametrize("verb", ["status", "reconcile", "undo --all", "simulate vm.xml"])
@pytest.mark.usefixtures("here")
def test_a_host_that_tells_no_release_is_no_traceback(
    host: Path, capsys: pytest.CaptureFixture[str], verb: str, damage: str
) -> None:
    """The release is no number."""
    (host / "proc/sys/kernel/osrelease").write_text(damage)
    code = run(verb, host)
    told = capsys.readouterr()
    assert code in {0, 1}
    assert told.err.count("\n") == code
