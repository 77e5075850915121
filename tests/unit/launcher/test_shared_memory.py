"""The file of shared memory: made for who views it, and never another's."""

from __future__ import annotations

import os
import stat
import subprocess
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvm_launch.many.together import load_all
from kvm_launch.prepare.shared_memory import make, opened, owners_of, problems
from kvm_launch.prepare.user import User, ids_of
from kvm_launch.spawn import privileges
from kvmhooks.errors import InputError, LaunchError
from kvmhooks.machine.arguments import option
from kvmhooks.qemu.passed_files import with_shared_memory
from kvmhooks.spec import VmSpec, parse_vm

QEMU = User("nobody", 65534, 65534, (65534, 107))
MIB = 1 << 20

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def vm(more: str = "") -> VmSpec:
    """A VM with 1 MiB of shared memory."""
    least = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
    return parse_vm(f'{least}[shared_memory]\nsize = "1MiB"\n{more}', folder=Path("/"))


def seen(path: Path) -> tuple[int, int, int, int]:
    """User, group, mode and size of a file."""
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_size


def test_a_file_is_made_once(tmp_path: Path) -> None:
    """It is ours alone and as large as it has to be; the next start finds it, and a VM without
    shared memory makes none.
    """
    file = tmp_path / "looking-glass"
    assert make(vm(), None, folder=tmp_path) == [file]
    assert seen(file) == (os.geteuid(), os.getegid(), 0o600, MIB)
    assert [*problems(vm(), None, folder=tmp_path)] == []
    assert make(vm(), None, folder=tmp_path) == []
    without = parse_vm('name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"', folder=Path("/"))
    assert make(without, None, folder=tmp_path / "none") == []


@as_root
def test_a_file_is_whose_it_is_to_be(tmp_path: Path) -> None:
    """QEMU's alone, or the viewer's and QEMU's group's."""
    made = {}
    for name, more, user in (
        ("qemus", "", QEMU),
        ("viewers", 'user = "daemon"', None),
        ("both", 'user = "daemon"', QEMU),
        ("same", 'user = "nobody"', QEMU),
    ):
        (path,) = make(vm(f'name = "{name}"\n{more}'), user, folder=tmp_path)
        made[name] = seen(path)
    assert made == {
        "qemus": (65534, 65534, 0o600, MIB),
        "viewers": (1, 0, 0o660, MIB),
        "both": (1, 65534, 0o660, MIB),
        "same": (65534, 65534, 0o600, MIB),
    }


def test_what_is_there_is_looked_at(tmp_path: Path) -> None:
    """A link is not followed, and a file of another size is not cut: somebody may have it open."""
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_bytes(b"x" * 4096)
    (tmp_path / "empty").touch(mode=0o600)
    told = {
        name: [str(problem) for problem in problems(vm(f'name = "{name}"'), None, folder=tmp_path)]
        for name in ("link", "folder", "other", "empty")
    }
    found = "shared_memory.size: found"
    name = "shared_memory.name: found no file '{}', expected a file, or none"
    assert told == {
        "link": [name.format(tmp_path / "link")],
        "folder": [name.format(tmp_path / "folder")],
        "other": [f"{found} '{tmp_path}/other' of 4096 bytes, expected none, or one of 1MiB"],
        "empty": [],
    }
    with pytest.raises(LaunchError, match="found no file"):
        make(vm('name = "link"'), None, folder=tmp_path)
    assert (tmp_path / "other").stat().st_size == 4096


@as_root
def test_anothers_file_is_not_used(tmp_path: Path) -> None:
    """Of the viewer's it is used where QEMU may open it: by its user, its groups, or as root."""
    file = tmp_path / "looking-glass"
    file.touch()
    cases = {
        "root's": (0, 0, 0o666, QEMU),
        "the viewer's alone": (1, 1, 0o600, QEMU),
        "of QEMU's group": (1, 65534, 0o660, QEMU),
        "of a further group of QEMU's": (1, 107, 0o660, QEMU),
        "of a group for reading": (1, 107, 0o640, QEMU),
        "everybody's": (1, 1, 0o666, QEMU),
        "the viewer's, and QEMU is root": (1, 1, 0o600, None),
        "somebody's, and QEMU is root": (2, 0, 0o666, None),
    }
    used = set()
    for name, (uid, gid, mode, user) in cases.items():
        os.chown(file, uid, gid)
        file.chmod(mode)
        if not [*problems(vm('user = "daemon"'), user, folder=tmp_path)]:
            used.add(name)
    assert used == {
        "of QEMU's group",
        "of a further group of QEMU's",
        "everybody's",
        "the viewer's, and QEMU is root",
    }


@as_root
def test_a_viewer_who_is_not_there_is_refused() -> None:
    """By the key that names him."""
    with pytest.raises(Exception, match=r"shared_memory\.user: found 'no-such-user'"):
        owners_of(vm('user = "no-such-user"'), None)


def test_only_the_file_that_was_looked_at_is_opened(tmp_path: Path) -> None:
    """None is none; a link that came since is not followed, nor a FIFO waited for, and of a file
    with two names or of another size it is said what is wrong.
    """
    without = parse_vm('name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"', folder=Path("/"))
    with opened(without, None, folder=tmp_path) as none:
        assert none == []
    (tmp_path / "link").symlink_to(tmp_path / "one")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 4096)
    make(vm('name = "one"'), None, folder=tmp_path)
    make(vm('name = "two"'), None, folder=tmp_path)
    (tmp_path / "two.again").hardlink_to(tmp_path / "two")
    results = {}
    for name in ("link", "fifo", "large", "two", "nothing", "one"):
        try:
            with opened(vm(f'name = "{name}"'), None, folder=tmp_path) as (descriptor,):
                is_it = os.path.samestat(os.fstat(descriptor), (tmp_path / name).lstat())
                results[name] = f"opened: {is_it}"
        except LaunchError as error:
            results[name] = str(error).replace(str(tmp_path), "")
    assert results == {
        "link": "shared_memory: /link: Too many levels of symbolic links",
        "fifo": "shared_memory.name: found no file '/fifo', expected a file, or none",
        "large": "shared_memory.size: found '/large' of 4096 bytes, expected none, or one of 1MiB",
        "two": "shared_memory.name: found '/two' with 2 names, expected its only name",
        "nothing": "shared_memory: /nothing: No such file or directory",
        "one": "opened: True",
    }


def test_a_file_finds_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own pages are free to it, and a file system without a limit has any."""
    page = 4096
    (tmp_path / "full").write_bytes(b"x" * MIB)
    (tmp_path / "full").chmod(0o600)
    rooms = {"much": (512, 256), "little": (512, 255), "none": (128, 0), "endless": (0, 0)}
    told = {}
    for kind, (blocks, free) in rooms.items():
        room = SimpleNamespace(f_frsize=page, f_blocks=blocks, f_bavail=free)
        monkeypatch.setattr(os, "statvfs", lambda _, room=room: room)
        for name in ("new", "full"):
            made = vm(f'name = "{name}"')
            told[kind, name] = [str(each) for each in problems(made, None, folder=tmp_path)]
    monkeypatch.undo()
    (problem,) = problems(vm(), None, folder=tmp_path / "nowhere")
    nowhere = f"found '{tmp_path}/nowhere': No such file or directory, expected a tmpfs"
    assert str(problem) == f"shared_memory.name: {nowhere}"
    size = "shared_memory.size: found 1MiB where"
    little = f"{size} 1020KiB of 2MiB are free in '{tmp_path}', expected 1020KiB or less"
    none = f"{size} 0KiB of 512KiB are free in '{tmp_path}', expected 0KiB or less"
    assert told == {
        **{key: [] for key in product(rooms, ("new", "full"))},
        ("little", "new"): [f"{little}, or a larger tmpfs"],
        ("none", "new"): [f"{none}, or a larger tmpfs"],
    }


def test_a_file_is_one_vms_as_long_as_it_lives(tmp_path: Path) -> None:
    """A process that inherited it counts, whatever became of who opened it; then it is free."""
    (file,) = make(vm(), None, folder=tmp_path)
    taken = f"shared_memory.name: found '{file}' in use by another VM, expected a name of its own"
    sleep = ["/bin/sleep", "60"]
    with opened(vm(), None, folder=tmp_path) as (descriptor,):
        child = subprocess.Popen(sleep, pass_fds=[descriptor])
        with pytest.raises(LaunchError) as first, opened(vm(), None, folder=tmp_path):
            pass
    with pytest.raises(LaunchError) as second, opened(vm(), None, folder=tmp_path):
        pass
    child.kill()
    child.wait()
    assert [str(first.value), str(second.value)] == [taken, taken]
    with opened(vm(), None, folder=tmp_path) as (descriptor,):
        assert os.fstat(descriptor).st_size == MIB


def test_vms_of_one_command_have_files_of_their_own(tmp_path: Path) -> None:
    """That is refused before any is started, as it is for names."""
    for name, more in (("a", ""), ("b", ""), ("c", 'name = "other"'), ("d", "")):
        text = f'name = "{name}"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
        (tmp_path / f"{name}.toml").write_text(
            f"{text}[shared_memory]\n{more}" if name < "d" else text
        )
    with pytest.raises(InputError) as error:
        load_all(sorted(tmp_path.glob("*.toml")))
    found = f"shared_memory.name: found 'looking-glass' in {tmp_path}/a.toml and {tmp_path}/b.toml"
    assert str(error.value) == f"{found}, expected another for each"


QEMU_PROGRAM = Path("/usr/bin/qemu-system-x86_64")


@pytest.mark.skipif(not QEMU_PROGRAM.exists(), reason="no QEMU here: qemu-system-x86")
@pytest.mark.parametrize("user", [None, pytest.param(QEMU, marks=as_root)], ids=["us", "nobody"])
def test_qemu_maps_what_was_opened(tmp_path: Path, user: User | None) -> None:
    """The name leads elsewhere by then, and its folder is closed to QEMU."""
    tmp_path.chmod(0o700)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(MIB))
    secret.chmod(0o666)
    (file,) = make(vm(), user, folder=tmp_path)
    named = {"id": "shmem-memory", "mem-path": str(file), "size": MIB, "share": True}
    words = option("object", {"qom-type": "memory-backend-file", **named})
    waiting, opening = os.pipe()
    os.write(opening, b"\1")
    os.close(opening)
    with opened(vm(), user, folder=tmp_path) as (descriptor,):
        wanted = os.fstat(descriptor).st_ino
        file.unlink()
        file.symlink_to(secret)
        child = privileges.command(waiting, gains=False, ids=ids_of(user), moves={descriptor: 100})
        silent = ("-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
        with subprocess.Popen(
            [*child, str(QEMU_PROGRAM), *with_shared_memory(words, 100), *silent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[waiting, descriptor],
        ) as qemu:
            assert qemu.stdout is not None
            os.close(waiting)
            greeting = qemu.stdout.readline()
            maps = Path(f"/proc/{qemu.pid}/maps").read_text()
            qemu.kill()
    assert b"QMP" in greeting
    mapped = {int(line.split()[4]) for line in maps.splitlines() if str(tmp_path) in line}
    assert mapped == {wanted}


def test_arguments_without_shared_memory_have_no_place_for_it() -> None:
    """That would be a mistake of ours."""
    with pytest.raises(ValueError, match="no such object"):
        with_shared_memory(["-object", '{"id":"ram-node0"}'], 100)
