"""The files in /etc/kvmhooks: who has the say, and what is refused with which words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kvmhooks.cli import status
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.hook import entry, fastpath
from kvmhooks.isolate.system.system import System
from kvmhooks.policy import SETTINGS
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import ISOLATION, Vm

DOCUMENT = Path(__file__).parents[3] / "docs/isolation.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host of 8 CPUs without a line in /etc/kvmhooks."""
    plant(Kernel("plain", 8, 10), tmp_path)
    (tmp_path / "etc/kvmhooks/vm.d").mkdir(parents=True)
    return tmp_path


def vm(policy: str = "") -> Vm:
    return Vm("web", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy)


def write(root: Path, text: str, name: str = "kvmhooks") -> Path:
    path = root / f"etc/kvmhooks/{name}.toml"
    path.write_text(text)
    return path


def run(root: Path, guest: Vm, operation: str, sub: str = "begin") -> int:
    arguments = [guest.name, operation, sub, "-"]
    return entry.main(arguments, io.BytesIO(guest.xml), io.StringIO(), str(root))


def test_the_nearest_has_the_say(root: Path) -> None:
    """The metadata, then the VM's file, then the host's; a default that is spelled out counts."""
    system = System(str(root))
    write(root, '[memory]\nksm = 0\nthp = "never"\nstat_interval = 9\n[isolation]\nirqs = false')
    write(root, '[memory]\nthp = "always"\nstat_interval = 8', "vm.d/web")
    guest = vm(ISOLATION + '<kvmhooks:memory stat_interval="7"/>')
    claim = read_claim(guest.xml, system=system)
    assert claim is not None
    assert dict(claim.settings) == {
        "isolation.irqs": "no",
        "memory.ksm": "0",
        "memory.stat_interval": "7",
        "memory.thp": "always",
    }
    claim = read_claim(vm('<kvmhooks:isolation irqs="yes"/>').xml, system=system)
    assert claim is not None
    assert "isolation.irqs" not in dict(claim.settings)


def test_status_tells_which_file_says_a_setting(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each that is not the VM's own has its file, in the record and for a person."""
    write(root, '[memory]\nksm = 0\nthp = "never"\nstat_interval = 9')
    write(root, '[memory]\nthp = "always"', "vm.d/web")
    for path in ("sys/kernel/mm/ksm/run", "proc/sys/vm/stat_interval"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("1\n")
    guest = vm(ISOLATION + '<kvmhooks:memory stat_interval="7"/>')
    for operation in ("prepare", "start"):
        assert run(root, guest, operation) == 0
    host, own = "/etc/kvmhooks/kvmhooks.toml", "/etc/kvmhooks/vm.d/web.toml"
    status.main("status", ["--root", str(root), "--json"])
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert claim["settings"] == {
        "memory.ksm": {"value": "0", "from": host},
        "memory.stat_interval": {"value": "7", "from": None},
        "memory.thp": {"value": "always", "from": own},
    }
    status.main("status", ["--root", str(root)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"  by {host}: memory.ksm 0", f"  by {own}: memory.thp always"]


def test_a_file_makes_a_vm_without_metadata_one_of_ours(root: Path) -> None:
    """From its start to its stop, and only the VM of that name."""
    before = snapshot(root)
    guest = vm()
    assert not fastpath.concerns(["web", "prepare", "begin", "-"], guest.xml, str(root))
    write(root, "[isolation]\nexclusive = true", "vm.d/web")
    for operation in ("prepare", "start", "started"):
        assert run(root, guest, operation) == 0
    assert (root / "proc/irq/1/smp_affinity_list").read_text().strip() == "0-5"
    assert run(root, guest, "release", "end") == 0
    (root / "etc/kvmhooks/vm.d/web.toml").unlink()
    assert snapshot(root) == before
    assert not fastpath.concerns(["other", "prepare", "begin", "-"], guest.xml, str(root))


def test_a_host_keeps_cpus_for_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim on them is refused with the place that says so."""
    write(
        root,
        '[host]\nhousekeeping = "0,7"\nbudget = 5\nbudget_hugepages = 60.5\nbudget_devices = 40',
    )
    limits = administrator.limits(System(str(root)))
    assert (str(limits.housekeeping), limits.budget, limits.budget_hugepages) == ("0,7", 5, 60.5)
    assert limits.budget_devices == 40
    assert run(root, vm(ISOLATION), "prepare") == 1
    output = capsys.readouterr().err
    assert output.startswith(
        "kvmhooks: web: CPUs 7 are the host's (/etc/kvmhooks/kvmhooks.toml: host"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("kvmhooks", "[memory]\nksm = 7", 'memory.ksm: found \'7\', expected "0", "1" or "2"'),
        ("kvmhooks", "[memory]\nksn = 1", "memory.ksn: no such setting; did you mean memory.ksm?"),
        ("kvmhooks", "[memory]\nksm = 1.5", "memory.ksm: found 1.5, expected a text, a whole numb"),
        ("kvmhooks", "memory = 1", "memory: found 1, expected a table such as [isolation]"),
        ("kvmhooks", "[memory", "Expected ']' at the end of a table declaration (at end of doc"),
        ("kvmhooks", "host = 1", "host: found 1, expected a table"),
        ("kvmhooks", "[host]\nbudget = 0", "host.budget: found 0, expected 1 to 600 seconds"),
        ("kvmhooks", "[host]\nbudget = nan", "host.budget: found nan, expected seconds"),
        ("kvmhooks", "[host]\ncpus = 1", "host.cpus: found 1, expected one of budget, budget_d"),
        ("kvmhooks", "[host]\nhousekeeping = 1", "host.housekeeping: found 1, expected a CPU list"),
        ("vm.d/web", "[host]\nbudget = 9", "host: found it here, expected it in /etc/kvmhooks/kv"),
        ("vm.d/web", "[power]\nboost = 1", 'power.boost: found \'1\', expected "yes" or "no"'),
        ("kvmhooks", "#" * 70_000, "found 65536 bytes or more, expected fewer"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    root: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, the key, what was found and what was expected, in one line; nothing is set."""
    write(root, text, name)
    before = snapshot(root)
    assert run(root, vm(ISOLATION), "prepare") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"kvmhooks: /etc/kvmhooks/{name}.toml: {message}")
    assert error.count("\n") == 1
    assert snapshot(root) == before


def test_what_others_may_write_is_refused(root: Path, tmp_path: Path) -> None:
    """A file or a directory that is not the administrator's own decides nothing; links neither."""
    system = System(str(root))
    path = write(root, "", "vm.d/web")
    for culprit, mode in ((path, 0o666), (path, 0o620), (path.parent, 0o777)):
        kept = culprit.stat().st_mode
        culprit.chmod(mode)
        with pytest.raises(IsolationError, match=r"expected owner \d+, and that nobody else"):
            administrator.policy_of(system, "web")
        culprit.chmod(kept)
    assert administrator.policy_of(system, "web") == {}
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IsolationError, match="expected a file, no link"):
        administrator.policy_of(system, "web")


@pytest.mark.parametrize("name", ["../kvmhooks", "", ".", "..", ".web", "a/b", "x" * 300, "a\0b"])
def test_a_name_does_not_leave_its_directory(root: Path, name: str) -> None:
    """It is checked before it becomes a path."""
    write(root, "[isolation]\nexclusive = true")
    assert administrator.policy_of(System(str(root)), name) is None
    assert not fastpath.concerns([name, "prepare", "begin", "-"], b"<domain/>", str(root))


def test_the_page_for_people_has_every_setting() -> None:
    """Its table is the table of the code."""
    rows = [
        f"| `{name}` | {setting.expected} | {setting.default or 'the host stays as it is'} |"
        for name, setting in SETTINGS.items()
    ]
    assert "\n".join(rows) in DOCUMENT.read_text()
