"""A supervisor of the version before goes on after its package was replaced by this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.record.state import FORMAT, State
from kvmhooks.version import VERSION
from tests.integration.components import ROOT

(WHEEL,) = (ROOT / "tests/lab/releases").glob("*/*.whl")

BOOT = "b8a1f5a2-9a4b-4b7a-8b1e-1f6a0d5c0001"

OWED = f"""{{"format":2,"version":"0.1.0","boot":"{BOOT}","held":{{}},"pools":{{}},
"functions":{{"0000:3b:02.0":["iavf","","991",[4711,123456]]}},"vfs":{{}},"vf_settings":{{}},
"mdevs":{{}},"reserved":{{}},"records":{{}}}}
""".replace("\n", "")

REPLACED = """
import shutil, subprocess, sys
old, new, *words = sys.argv[1:]
sys.path[:0] = [old]
from kvm_launch import child
shutil.rmtree(f"{old}/kvm_launch")
shutil.copytree(f"{new}/launcher/kvm_launch", f"{old}/kvm_launch")
command = child.command(int(words[0]), gains=False, ids="", moves={}, rooms=words[1:])
subprocess.run([*command, "/bin/echo", "it runs"], pass_fds=[int(words[0])])
"""

SUPERVISOR = """
import shutil, sys
from pathlib import Path
old, new, root = sys.argv[1:]
sys.path[:0] = [old]
from kvmhooks.isolate import attached, bus, children, engine, functions, knobs, pins, uses
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.store import Store
shutil.rmtree(f"{old}/kvmhooks")
shutil.copytree(f"{new}/kvmhooks", f"{old}/kvmhooks")
keeper = Keeper(Door(root), Store(root))
print(keeper.left_over(keeper.reconcile()), dict(keeper.look().functions))
"""


def test_it_gives_back_its_device(tmp_path: Path) -> None:
    """The modules that it imports only then are there, by the names of that version."""
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path / "old")
    root = tmp_path / "host"
    (root / "run").mkdir(parents=True)
    (root / "run/kvmhooks").mkdir(mode=0o700)
    files = {
        "run/kvmhooks/state.json": OWED,
        "proc/sys/kernel/random/boot_id": BOOT,
        "proc/sys/kernel/osrelease": "6.1.0",
        "sys/devices/system/cpu/online": "0-3",
        "sys/devices/system/cpu/possible": "0-3",
        "sys/bus/pci/devices/.keep": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    done = subprocess.run(
        [sys.executable, "-I", "-c", SUPERVISOR, tmp_path / "old", ROOT, root],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stderr, done.stdout) == ("", "[] {}\n")


READS = """
import sys
sys.path[:0] = [sys.argv[1]]
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.state import State
try:
    print(State.from_text(sys.stdin.read(), sys.argv[2]).to_text())
except IsolationError as error:
    print(error)
"""


def read_by_it(text: str) -> str:
    """Return a record as that version reads and writes it, or what it refuses it with."""
    return subprocess.run(
        [sys.executable, "-I", "-c", READS, WHEEL, BOOT], input=text, capture_output=True,
        text=True, check=True,
    ).stdout.rstrip("\n")  # fmt: skip


def test_it_reads_the_record_that_this_version_goes_on_with() -> None:
    """A record in its form stays in it, until nothing is held: nothing is lost on the way there
    and back, of any kind of resource."""
    kept = ROOT / "tests/unit/isolate/records/0.1.0-a92f6b5.json"
    state = State.from_text(kept.read_text(), BOOT)
    assert state.resources.keys() == KINDS.keys()
    text = state.to_text()
    assert json.loads(read_by_it(text)) == json.loads(text)


def test_it_refuses_a_record_of_this_version() -> None:
    """With its own words, after a downgrade."""
    assert read_by_it(State(BOOT).to_text()) == (
        f"/run/kvmhooks: found format {FORMAT} of kvmhooks {VERSION!r}, expected 2: run that "
        "version's `kvmhooks undo --all`, or stop its VMs first"
    )


def test_it_starts_its_vm_again(tmp_path: Path) -> None:
    """The words with which it starts QEMU are understood, by the file that it runs."""
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path / "old")
    waiting, gate = os.pipe()
    os.write(gate, b"\1")
    os.close(gate)
    words = [sys.executable, "-I", "-c", REPLACED, tmp_path / "old", ROOT, waiting, "/"]
    done = subprocess.run(
        list(map(str, words)), pass_fds=[waiting], capture_output=True, text=True, check=False
    )
    os.close(waiting)
    assert (done.stdout, "Error" in done.stderr) == ("it runs\n", False), done.stderr
