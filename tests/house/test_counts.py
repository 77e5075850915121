"""Numbers that keep commands quick: the modules, classes, files and calls that each costs.

All four are the same in every run, unlike times. They are in ``counts.json``::

    .venv/bin/pytest tests/house/test_counts.py --regen    # write them anew

Whoever raises one says why in the commit; one that fell is written anew, or what is won is lost
again unseen. They are those of Python 3.11, which tests run with: others have other modules of
their own, and call no function for a comprehension (PEP 709). They are those of the libraries'
versions that stand beside them, too: with others the test is skipped where a number differs.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from kvmhooks.isolate.hook.bundle import build
from kvmhooks.values import CpuSet
from tests.fakehost import write_host
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
NUMBERS: Final = HERE / "counts.json"
SLACK: Final = 0.05

SITE: Final = ("-s", "-P")
HOOK: Final = (*SITE, "-S")
"""The installed file is run without anybody's site-packages."""

CONCERNS: Final = "concerns(sys.argv[1:], xml)"
"""The hook's question, which is asked of this host, here of one of files; not with ``--root``."""

LIBRARIES: Final = ("attrs", "cattrs", "lxml", "pyudev", "rich", "typing_extensions")
"""Those that a command loads, and that count with it."""

COMMANDS: Final = (
    "kvm-launch --help",
    "kvm-launch --print argv --host host vm.toml",
    "kvmhooks --help",
    "kvmhooks plan vm.toml --host host",
)
OPERATIONS: Final = (
    *("prepare begin", "start begin", "started begin", "reconnect begin", "migrate begin"),
    *("restore begin", "stopped end", "release end"),
)
"""libvirt's (https://libvirt.org/hooks.html), in the order of a VM's life."""

OURS: Final = Vm("ours", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
STRANGER: Final = Vm("stranger", CpuSet.parse("4-5"), CpuSet.parse("0-1"), policy="")
VM: Final = """\
name = "vm"
[cpu]
vcpus = 4
placement = "dedicated"
[memory]
size = "1GiB"
[[disk]]
path = "vm.qcow2"
format = "qcow2"
[[net]]
type = "user"
"""

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the numbers are those of Python 3.11"
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """The counts of each command, and of each call of the hook."""
    for package in (ROOT / "kvmhooks", ROOT / "launcher"):
        compileall.compile_dir(package, quiet=2)  # a first run would write the byte code
    folder = tmp_path_factory.mktemp("counted")
    write_host(folder / "host", cores=8)
    (folder / "vm.toml").write_text(VM)
    counts = {command: count(folder, SITE, command) for command in COMMANDS}
    hook = folder / "hook"
    text = build(sys.executable)
    assert text.count(CONCERNS) == 1
    for vm in (STRANGER, OURS):
        root = folder / vm.name
        plant(Kernel("plain", 8, 10), root)
        (root / "run").mkdir()
        hook.write_text(text.replace(CONCERNS, f"concerns(sys.argv[1:], xml, {str(root)!r})"))
        where = f"--root {root} " if vm is OURS else ""
        for operation in OPERATIONS:
            words = f"{hook} {where}{vm.name} {operation} -"
            counts[f"hook {vm.name} {operation}"] = count(folder, HOOK, words, vm.xml)
    return counts


def count(
    folder: Path, options: tuple[str, ...], command: str, stdin: bytes = b""
) -> dict[str, int]:
    """Run a command in an interpreter of its own; it has to succeed."""
    done = subprocess.run(
        [sys.executable, *options, HERE / "counted.py", "counts", *command.split()],
        cwd=folder,
        input=stdin,
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "COLUMNS": "80", "LANG": "C.UTF-8"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    counts: dict[str, int] = json.loads((folder / "counts").read_text())
    return counts


def test_no_command_does_more(
    counted: dict[str, dict[str, int]], request: pytest.FixtureRequest
) -> None:
    """Each count is the number in the repository, give or take 5 %."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    if request.config.getoption("--regen"):
        rows = {"versions": versions, **counted}
        lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in rows.items()]
        NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    expected = json.loads(NUMBERS.read_text())
    theirs = expected.pop("versions")
    assert counted.keys() == expected.keys()
    others = [
        f"{command}: {what}: found {found}, expected {expected[command][what]}"
        for command, counts in counted.items()
        for what, found in counts.items()
        if abs(found - expected[command][what]) > SLACK * expected[command][what]
    ]
    if others and versions != theirs:
        pytest.skip(f"the numbers are those of {theirs}, found {versions}: {others[0]}")
    assert not others, "\n".join(
        [*others, "if that is meant: pytest tests/house/test_counts.py --regen"]
    )
