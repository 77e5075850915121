"""The needs of a VM on this host."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kvm_launch.prepare.checks import check
from kvm_launch.prepare.user import user_of
from kvmhooks.errors import SpecError
from kvmhooks.spec import parse_vm


def test_everything_that_is_missing_is_told(tmp_path: Path) -> None:
    """Files that are not there, folders instead of files, and interfaces of the wrong kind."""
    (tmp_path / "folder").mkdir()
    text = """
        name = "web"
        cpu.vcpus = 1
        memory.size = "1GiB"
        boot = {firmware = "rom", kernel = "folder", initrd = "initrd"}
        disk = [{path = "folder"}, {path = "image", readonly = true}]
        net = [{type = "bridge", device = "lo"}, {type = "tap", device = "tap-none"}]
    """
    spec = parse_vm(text, folder=tmp_path, source="web.toml")
    with pytest.raises(SpecError) as raised:
        check(spec)
    assert [str(problem) for problem in raised.value.problems] == [
        f"boot.kernel: found a folder '{tmp_path}/folder', expected a file that can be read",
        f"boot.initrd: found no file '{tmp_path}/initrd', expected a file that can be read",
        f"boot.firmware: found no file '{tmp_path}/rom', expected a file that can be read",
        f"disk[0].path: found a folder '{tmp_path}/folder', expected an image to read and write",
        f"disk[1].path: found no file '{tmp_path}/image', expected an image to read",
        "net[0].device: found no bridge 'lo', expected a bridge",
        "net[1].device: found no interface 'tap-none', expected a tap",
    ]


def test_a_vm_that_has_everything_passes(tmp_path: Path) -> None:
    """Nothing is said of files that are there."""
    (tmp_path / "image").write_bytes(b"")
    text = 'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\ndisk = [{path = "image"}]'
    check(parse_vm(text, folder=tmp_path))
    (tmp_path / "image").unlink()
    with pytest.raises(SpecError):
        check(parse_vm(text, folder=tmp_path))


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@ROOT_ONLY
def test_what_another_user_may_not_open_is_told(tmp_path: Path) -> None:
    """The files are looked at as that user, and we stay who we are."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    image = theirs / "image"
    image.write_bytes(b"")
    os.chown(theirs, pwd.getpwnam("nobody").pw_uid, -1)
    text = (
        'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\nmachine.user = "nobody"\n'
        'disk = [{path = "theirs/image"}, {path = "/none"}, {path = "/dev/null"}]'
    )
    spec = parse_vm(text, folder=tmp_path)
    with pytest.raises(SpecError) as raised:
        check(spec, user_of(spec))
    assert [str(problem) for problem in raised.value.problems] == [
        f"disk[0].path: found no permission for '{image}', expected an image to read and write",
        "disk[1].path: found no file '/none', expected an image to read and write",
    ]
    assert (os.geteuid(), os.getgid()) == (0, 0)


def test_a_user_who_is_not_there_is_refused() -> None:
    """By name."""
    text = 'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\nmachine.user = "noone"'
    message = r"machine\.user: found 'noone', expected a user of this host"
    with pytest.raises(SpecError, match=message):
        user_of(parse_vm(text, folder=Path("/")))
