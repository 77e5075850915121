"""The images that are opened for QEMU: what of a disk is opened, and as whom."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import attrs
import pytest

from kvm_launch.prepare.disks import Layer, Unopened, layers_of, numbered, roots_path
from kvm_launch.prepare.images import QEMU_IMG
from kvm_launch.prepare.user import User
from kvm_launch.spawn import privileges
from kvmhooks.errors import LaunchError
from kvmhooks.qemu.passed_images import Opened
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.storage import Disk

HEAD = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "64MiB"\n'

FORMAT_NAME = b"\xe2\x79\x2a\xca"
"""The beginning of the header's part with the format of the base (docs/interop/qcow2.txt)."""

pytestmark = pytest.mark.skipif(not QEMU_IMG.exists(), reason="no qemu-img here: qemu-utils")


def spec(folder: Path, *disks: str) -> VmSpec:
    """A VM with disks."""
    text = "\n".join(f"[[disk]]\n{each}" for each in disks)
    return parse_vm(HEAD + text, folder=folder)


def create(folder: Path, name: str, *options: str) -> None:
    """Make a qcow2 image in ``folder``."""
    create = [str(QEMU_IMG), "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, *options[:-1], name, *options[-1:]], cwd=folder, check=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of every kind."""
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    create(tmp_path, "middle.qcow2", "-b", "base.raw", "-F", "raw", "1M")
    create(tmp_path, "top.qcow2", "-b", f"{tmp_path}/middle.qcow2", "-F", "qcow2", "1M")
    create(tmp_path, "alone.qcow2", "1M")
    create(tmp_path, "unknown.qcow2", "-u", "-b", "base.raw", "-F", "raw", "1M")
    unknown = (tmp_path / "unknown.qcow2").read_bytes()
    assert FORMAT_NAME in unknown
    (tmp_path / "unknown.qcow2").write_bytes(unknown.replace(FORMAT_NAME, b"none"))
    create(tmp_path, "other.qcow2", "-u", "-b", "base.vmdk", "-F", "vmdk", "1M")
    create(tmp_path, "remote.qcow2", "-u", "-b", "nbd://host/disk", "-F", "raw", "1M")
    create(tmp_path, "split.qcow2", "-o", f"data_file={tmp_path}/data.raw", "1M")
    create(tmp_path, "round.qcow2", "-u", "-b", "about.qcow2", "-F", "qcow2", "1M")
    create(tmp_path, "about.qcow2", "-u", "-b", "round.qcow2", "-F", "qcow2", "1M")
    return tmp_path


def test_each_layer_is_opened(images: Path) -> None:
    """Only a disk's own image is written, and not even that of one that is only read."""
    made = spec(
        images,
        'path = "top.qcow2"\nformat = "qcow2"',
        'path = "alone.qcow2"\nformat = "qcow2"\nreadonly = true',
        'path = "base.raw"',
    )

    def layer(name: str, kind: str, *, is_written: bool = False) -> Layer:
        return Layer(images / name, kind, is_written, is_roots=False)

    layers = {
        0: [
            layer("top.qcow2", "qcow2", is_written=True),
            layer("middle.qcow2", "qcow2"),
            layer("base.raw", "raw"),
        ],
        1: [layer("alone.qcow2", "qcow2")],
        2: [layer("base.raw", "raw", is_written=True)],
    }
    assert layers_of(made, None) == (layers, [])
    kept = attrs.evolve(made, disk=(attrs.evolve(made.disk[0], passed=False), *made.disk[1:]))
    assert layers_of(kept, None) == ({at: layers[at] for at in (1, 2)}, [])
    opened, files = numbered(layers, 7)
    assert opened == {
        0: [Opened(7, "qcow2"), Opened(8, "qcow2"), Opened(9, "raw")],
        1: [Opened(10, "qcow2")],
        2: [Opened(11, "raw")],
    }
    assert files == dict(enumerate([*layers[0], *layers[1], *layers[2]], 7))


UNOPENED = [
    ("unknown", "is built on '{}/base.raw', whose format it does not say (qemu-img rebase -u -F)"),
    ("other", "is built on '{}/base.vmdk', of format vmdk (qemu-img rebase -u -F)"),
    ("remote", "is built on 'nbd://host/disk', which is no file"),
    ("split", "keeps its data in another file"),
]


@pytest.mark.parametrize(("name", "why"), UNOPENED, ids=[name for name, _ in UNOPENED])
def test_what_is_not_known_stays_qemus(images: Path, name: str, why: str) -> None:
    """Formats are never guessed: a guest could have written another header."""
    made = spec(images, f'path = "{name}.qcow2"\nformat = "qcow2"')
    message = f"{images}/{name}.qcow2 {why.format(images)}"
    assert layers_of(made, None) == ({}, [Unopened("disk[0].path", message)])


def test_a_chain_has_an_end(images: Path) -> None:
    """An image that is built on itself is not followed for ever."""
    made = spec(images, 'path = "round.qcow2"\nformat = "qcow2"')
    why = "more than 64 images are built on each other"
    assert layers_of(made, None) == ({}, [Unopened("disk[0].path", why)])


def test_an_image_that_is_none_is_told(images: Path) -> None:
    """The words are qemu-img's."""
    made = spec(images, 'path = "base.raw"\nformat = "qcow2"')
    with pytest.raises(LaunchError, match=r"base\.raw: .*not in qcow2 format"):
        layers_of(made, None)


def disk(path: Path | str, kind: str = "raw") -> Disk:
    """A disk that somebody asks for."""
    return spec(Path("/"), f'path = "{path}"\nformat = "{kind}"').disk[0]


def test_only_what_nobody_else_can_change_is_roots(tmp_path: Path) -> None:
    """Neither the path nor what its links lead to; and no image that says what else is opened."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    (theirs / "link").symlink_to("/etc/hostname")
    assert roots_path(disk("/etc/hostname"))
    assert roots_path(disk("/dev/stdin"))  # its link leads into /proc, which is root's
    assert not roots_path(disk("/etc/hostname", "qcow2"))
    assert not roots_path(attrs.evolve(disk("/etc/hostname"), passed=False))
    assert not roots_path(disk("/tmp/image"))  # others can write there
    assert not roots_path(disk(theirs / "image"))
    assert not roots_path(disk(theirs / "link"))
    assert not roots_path(disk("/nothing/of/the/kind"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("who", ["user", "us"])
def test_a_child_opens_files_as_who_may(tmp_path: Path, who: str) -> None:
    """Only as him, and he cannot open root's; the program has it by its number, and is him."""
    image = tmp_path / "image"
    image.write_text("content\n")
    image.chmod(0o600)
    nobody = pwd.getpwnam("nobody")
    user = User("nobody", nobody.pw_uid, nobody.pw_gid, (nobody.pw_gid,))
    waiting, opening = os.pipe()
    os.write(opening, b"\1")
    os.close(opening)
    words = privileges.command(
        waiting,
        gains=False,
        ids=f"{user.uid}:{user.gid}:{user.gid}",
        moves={},
        files=[privileges.file_of(str(image), 9, os.O_RDONLY, as_user=who == "user")],
    )
    program = ["/bin/sh", "-c", "exec <&9; cat; id -un; id -Gn"]
    done = subprocess.run(
        [*words, *program], pass_fds=[waiting], capture_output=True, text=True, check=False
    )
    os.close(waiting)
    if who == "user":
        assert (done.returncode, done.stderr) == (127, f"{image}: Permission denied\n")
    else:
        assert done.stdout.splitlines() == ["content", "nobody", "nogroup"]
