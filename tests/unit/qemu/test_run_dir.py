"""The directory of a VM that runs: made for one, and gone with it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from kvmhooks.errors import LaunchError
from kvmhooks.qemu.run_dir import RunDir, check_free, private_directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Give the place of the VMs' directories."""
    return tmp_path / "kvm-launch"


def test_it_is_there_while_the_vm_runs(base: Path) -> None:
    """Both directories are their owner's alone, and only the base stays."""
    with RunDir(base, "web") as run_dir:
        assert run_dir.path == base / "web"
        assert [path.stat().st_mode & 0o777 for path in (base, run_dir.path)] == [0o700, 0o700]
        (run_dir.path / "qmp.sock").touch()
        assert names(base) == [".web.lock", "web"]
    assert names(base) == []


def test_it_is_removed_after_a_failure_too(base: Path) -> None:
    """Nothing of the VM is left, whatever ends it."""
    with pytest.raises(KeyboardInterrupt), RunDir(base, "web"):
        raise KeyboardInterrupt
    assert names(base) == []


def test_a_second_vm_of_the_name_is_refused(base: Path) -> None:
    """A name that runs is refused while it runs, nothing of it is touched, and not after."""
    with RunDir(base, "web") as first:
        (first.path / "qmp.sock").touch()
        with (
            pytest.raises(LaunchError, match="name: found 'web', expected one that does not run"),
            RunDir(base, "web"),
        ):
            pass
        assert names(first.path) == ["qmp.sock"]
        with RunDir(base, "other"):
            assert names(base) == [".other.lock", ".web.lock", "other", "web"]
    with RunDir(base, "web"):
        assert names(base) == [".web.lock", "web"]


def test_a_name_that_runs_is_told_before_it_starts(base: Path) -> None:
    """In the same words, by either lock; nothing is made to find out."""
    check_free(base, "web")
    assert not base.exists()
    with RunDir(base, "web") as first:
        told = "name: found 'web', expected one that does not run already"
        with pytest.raises(LaunchError, match=told):
            check_free(base, "web")
        (base / ".web.lock").unlink()  # by hand: the directory's own lock is there
        with pytest.raises(LaunchError, match=told):
            check_free(base, "web")
        assert names(first.path) == []
    check_free(base, "web")


def test_what_qemu_inherits_frees_no_name_and_holds_no_bytes(base: Path) -> None:
    """QEMU may be taken over by its guest: it can neither write into the lock nor let go of it."""
    with RunDir(base, "web") as first:
        (first.path / "qmp.sock").touch()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(first.lock, b"x")
        fcntl.flock(first.lock, fcntl.LOCK_UN)
        with (
            pytest.raises(LaunchError, match="expected one that does not run"),
            RunDir(base, "web"),
        ):
            pass
        assert names(first.path) == ["qmp.sock"]
    assert names(base) == []
    with RunDir(base, "web"):
        assert names(base) == [".web.lock", "web"]


def test_a_lock_that_was_removed_by_hand_is_no_failure(base: Path) -> None:
    """Nor is the next one's, which is another file, removed."""
    with RunDir(base, "web"):
        (base / ".web.lock").unlink()
        with (
            pytest.raises(LaunchError, match="expected one that does not run"),
            RunDir(base, "web"),
        ):
            pass
        (base / ".web.lock").touch()
    assert names(base) == [".web.lock"]


def test_names_do_not_meet_locks(base: Path) -> None:
    """A VM may have a name that ends as a lock's does, beside the VM of that lock."""
    with RunDir(base, "web.lock"), RunDir(base, "web"):
        assert names(base) == [".web.lock", ".web.lock.lock", "web", "web.lock"]


def test_what_a_dead_vm_left_is_cleaned(base: Path) -> None:
    """A directory without a holder of its lock is made anew, and so is a stale lock."""
    (base / "web").mkdir(parents=True)
    base.chmod(0o700)
    (base / "web/qmp.sock").touch()
    (base / ".web.lock").touch()
    with RunDir(base, "web") as run_dir:
        assert names(run_dir.path) == []


def test_a_link_is_not_followed(base: Path, tmp_path: Path) -> None:
    """A link where the VM's directory should be is refused, and what it points to is whole."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "data").touch()
    base.mkdir(mode=0o700)
    (base / "web").symlink_to(target)
    with (
        pytest.raises(LaunchError, match=r"web: .*: expected a VM's directory"),
        RunDir(base, "web"),
    ):
        pass
    assert names(target) == ["data"]
    assert names(base) == ["web"]


def test_what_no_vm_leaves_is_not_removed(base: Path) -> None:
    """A folder inside is none of a VM's: it is refused, and the lock is given back."""
    (base / "web/folder").mkdir(parents=True)
    base.chmod(0o700)
    with pytest.raises(LaunchError, match="expected a VM's directory"), RunDir(base, "web"):
        pass
    assert names(base) == ["web"]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_can_enter_is_refused(base: Path, mode: int) -> None:
    """The base is its owner's alone, or nothing is put there."""
    base.mkdir()
    base.chmod(mode)
    with pytest.raises(LaunchError, match=rf"mode {mode:o}, expected owner \d+ and mode 700"):
        private_directory(base)
    assert names(base) == []


@pytest.mark.parametrize("kind", ["link", "file", "nowhere"])
def test_what_is_no_directory_is_refused(tmp_path: Path, base: Path, kind: str) -> None:
    """A link, also to a directory of one's own, a file, and a missing parent are refused."""
    if kind == "link":
        (tmp_path / "own").mkdir(mode=0o700)
        base.symlink_to(tmp_path / "own")
    elif kind == "file":
        base.touch()
    else:
        base = base / "deeper"
    with pytest.raises(LaunchError, match="expected a directory of this user's own"):
        private_directory(base)


def test_a_private_directory_is_given_open(base: Path) -> None:
    """The descriptor is of the directory itself, also when it was there before."""
    for _ in range(2):
        descriptor = private_directory(base)
        assert os.path.samestat(os.fstat(descriptor), base.stat())
        os.close(descriptor)


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())
