"""The units for VMs of kvm-launch: written, read by systemd itself, and taken away again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmhooks import units
from kvmhooks.cli import units as cli_units
from kvmhooks.cli.main import main
from kvmhooks.errors import LaunchError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with both programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kvm-launch", "kvmhooks"):
        (folder / name).symlink_to("/bin/true")
    return folder


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("is_user", [False, True])
def test_systemd_has_nothing_to_say(tmp_path: Path, programs: Path, *, is_user: bool) -> None:
    """``systemd-analyze verify`` reads them and says nothing, for either manager."""
    paths = units.install(tmp_path / "units", programs, is_user=is_user).made
    assert [path.name for path in paths] == [units.NAME, units.RECONCILE][: 1 if is_user else 2]
    scope = ["--user"] if is_user else []
    command = ["systemd-analyze", *scope, "--man=no", "verify", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ours_are_replaced_and_removed_and_others_left_alone(
    tmp_path: Path, programs: Path
) -> None:
    """The hook's own unit for reconcile stays; a unit of somebody else's is refused and stays."""
    folder = tmp_path / "units"
    paths = units.install(folder, programs).made
    before = {path.name: path.read_text() for path in folder.iterdir()}
    units.install(folder, programs)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    paths[1].write_text("# Made by `kvmhooks hooks install`.\n")
    assert units.install(folder, programs).made == paths[:1]
    assert units.remove(folder) == paths[:1]
    assert [path.name for path in folder.iterdir()] == [units.RECONCILE]
    paths[0].write_text("[Unit]\n")
    with pytest.raises(LaunchError, match="found a unit that is not ours"):
        units.install(folder, programs)
    assert paths[0].read_text() == "[Unit]\n"
    assert units.remove(folder) == []


def test_the_verb_writes_below_a_root(tmp_path: Path, programs: Path) -> None:
    """It names what it wrote and how a VM is started; without the programs it is refused."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvmhooks.cli.main", "install-units", "--root", tmp_path]
        return subprocess.run([str(word) for word in (*command, *words)], cwd=ROOT, check=False,
                              capture_output=True, text=True)  # fmt: skip

    refused = run("--programs", tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"{tmp_path}/kvm-launch: found nothing, expected a program")
    done = run("--programs", programs)
    folder = tmp_path / units.SYSTEM
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{folder / units.NAME}",
            f"{folder / units.RECONCILE}",
            "/etc/kvm-launch/NAME.toml is a VM: `systemctl start kvm-launch@NAME`",
        ],
    ), done.stderr
    assert run("--remove").returncode == 0
    assert list(folder.iterdir()) == []


def test_roots_unit_keeps_the_capabilities_that_are_written_down(
    tmp_path: Path, programs: Path
) -> None:
    """And the user's has none to take away."""
    kept = f"\nCapabilityBoundingSet={' '.join(sorted(units.CAPABILITIES))}\n"
    for is_user in (False, True):
        path, *_ = units.install(tmp_path / str(is_user), programs, is_user=is_user).made
        assert (kept in path.read_text()) is not is_user


def test_a_packages_units_serve_and_are_not_hidden(tmp_path: Path, programs: Path) -> None:
    """They are told; what an earlier installation left in `/etc`, which would hide them, goes."""
    folder = tmp_path / units.SYSTEM
    units.install(folder, programs)
    theirs = [path for path in units.package(tmp_path, programs) if "/system/" in str(path)]
    command = [sys.executable, "-m", "kvmhooks.cli.main", "install-units", "--root", tmp_path]
    words = [str(word) for word in (*command, "--programs", programs)]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    told = [f"{path}: it is a package's, and serves" for path in theirs]
    assert done.stdout.splitlines()[:-1] == told
    assert list(folder.iterdir()) == []


def test_another_kvm_launch_does_not_hide_a_packages_units(tmp_path: Path, programs: Path) -> None:
    """A VM would be another program's after the next reload: it is refused with both names."""
    theirs = [path for path in units.package(tmp_path, Path("/usr/bin")) if "/system/" in str(path)]
    folder = tmp_path / units.SYSTEM
    with pytest.raises(LaunchError) as refused:
        units.install(folder, programs, packaged=tmp_path / units.PACKAGED[False])
    message = f"{theirs[0]}: found a package's unit, which starts /usr/bin/kvm-launch, expected "
    assert str(refused.value).startswith(f"{message}{programs}/kvm-launch: ")
    assert not folder.exists()


@pytest.mark.parametrize("more", ["--programs {programs}", "--remove"])
def test_no_unit_is_written_or_removed_out_of_a_root(
    tmp_path: Path, programs: Path, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a link that its owner has put into it."""
    units.install(tmp_path / "elsewhere/systemd/system", programs)
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    root = tmp_path / "host"
    root.mkdir()
    (root / "etc").symlink_to(tmp_path / "elsewhere")
    words = more.format(programs=programs).split()
    assert main(["install-units", "--root", str(root), *words]) == 1
    message = f"{root}/etc: found a link to {tmp_path}/elsewhere, which leads out of {root}\n"
    assert capsys.readouterr() == ("", message)
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


@pytest.mark.parametrize("other", ["--remove", "--user"])
def test_packaged_goes_with_no_other_place(
    tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be passed over, or pass the other over: refused, and nothing is made or removed."""
    (made, *_) = units.package(tmp_path, Path("/usr/bin"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["install-units", "--packaged", other, "--root", str(tmp_path)]) == 2
    assert f"--packaged: found {other} beside it, expected" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert made in before


def test_a_packager_needs_no_programs(tmp_path: Path) -> None:
    """`--packaged` writes the same units below `usr/lib`, for both managers."""
    command = [sys.executable, "-m", "kvmhooks.cli.main", "install-units", "--packaged",
               "--root", tmp_path, "--programs", "/usr/bin"]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    made = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(done.stdout.splitlines()) == list(map(str, made))
    for path in made:
        is_user = path.parent.name == "user"
        assert path.read_text() == units.texts(Path("/usr/bin"), is_user=is_user)[path.name]
    assert [str(path.relative_to(tmp_path)) for path in made] == [
        "usr/lib/systemd/system/kvm-launch@.service",
        "usr/lib/systemd/system/kvmhooks-reconcile.service",
        "usr/lib/systemd/user/kvm-launch@.service",
    ]


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd would be reloaded")
@pytest.mark.parametrize("is_user", [False, True])
def test_nobody_is_told_where_systemd_does_not_run(
    capfd: pytest.CaptureFixture[str], *, is_user: bool
) -> None:
    """A container may have its programs, and no systemd."""
    cli_units._reload(is_user=is_user)
    assert capfd.readouterr() == ("", "")
