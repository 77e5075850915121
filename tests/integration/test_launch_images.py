"""Images and cloud-init's seed: made before a start, checked, and never overwritten."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.integration.components import Launcher
from tests.integration.roms import write_rom

IMG = Path("/usr/bin/qemu-img")

pytestmark = pytest.mark.skipif(not IMG.exists(), reason="no qemu-img here: apt install qemu-utils")


def info(path: Path) -> dict[str, Any]:
    """Return what qemu-img says of an image."""
    command = [str(IMG), "info", "--output=json", str(path)]
    done = subprocess.run(command, check=True, capture_output=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def base(launcher: Launcher) -> Path:
    """An image of 8 MiB."""
    path = launcher.base / "base.qcow2"
    subprocess.run([IMG, "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    return path


def vm(launcher: Launcher, text: str) -> Path:
    """A VM that powers off at once."""
    rom = write_rom(launcher.base / "off.rom", "powers off")
    return launcher.vm("made", text, top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')


IMAGES = """
[[disk]]
path = "root.qcow2"
format = "qcow2"
cache = "writeback"
[[disk]]
path = "data.raw"
cache = "writeback"
[[image]]
path = "root.qcow2"
base = "base.qcow2"
size = "16MiB"
[[image]]
path = "data.raw"
format = "raw"
size = "1MiB"
"""


@pytest.mark.usefixtures("base")
def test_images_are_made_once_and_kept(launcher: Launcher) -> None:
    """An overlay, larger than its base, and an empty disk; the next start uses them as they are."""
    spec = vm(launcher, IMAGES)
    assert launcher.run("--dry-run", spec).returncode == 0
    folder = launcher.base
    assert not (folder / "root.qcow2").exists()
    ran = launcher.run(spec)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("image: ") == 2
    root = info(folder / "root.qcow2")
    assert root["virtual-size"] == 16 << 20
    assert root["full-backing-filename"] == f"{folder}/base.qcow2"
    assert root["backing-filename-format"] == "qcow2"
    data = folder / "data.raw"
    assert data.read_bytes() == bytes(1 << 20)
    data.write_bytes(b"kept".ljust(1 << 20))
    again = launcher.run(spec)
    assert (again.returncode, again.stdout.count("image: ")) == (0, 0)
    assert data.read_bytes().startswith(b"kept")


REFUSED = {
    '[[image]]\npath = "new.qcow2"': "image[0].size: found nothing, and no base, expected a size",
    '[[image]]\npath = "new.qcow2"\nbase = "base.qcow2"\nsize = "4MiB"': (
        "image[0].size: found 4MiB, expected 8MiB or more: the base is as large"
    ),
    '[[image]]\npath = "new"\nformat = "raw"\nbase = "base.qcow2"': (
        "image[0].format: found 'raw', expected \"qcow2\": no other format has a base"
    ),
    '[[image]]\npath = "new.qcow2"\nbase = "none.qcow2"': "image[0].base: found Could not open ",
    '[[image]]\npath = "base.qcow2"\nsize = "9MiB"': "image[0].size: found 8MiB in ",
    '[[image]]\npath = "base.qcow2"\nbase = "other.qcow2"': "image[0].base: found no base of ",
    '[[image]]\npath = "off.rom"\nsize = "9MiB"': "image[0].path: found ",
    '[[image]]\npath = "none/new.qcow2"\nsize = "9MiB"': "image[0].path: found no folder ",
    '[cloud_init]\nseed = "off.rom"': "cloud_init.seed: found a file ",
    '[cloud_init]\nseed = "s.iso"\nuser_data = "none"': "cloud_init.user_data: found no file ",
}


def disk_of(text: str) -> str:
    """Return the disk that a file to be made is for."""
    told = tomllib.loads(text)
    image = told.get("image", [{}])[0]
    path = image.get("path") or told["cloud_init"]["seed"]
    kind = image.get("format", "qcow2" if image else "raw")
    return f'[[disk]]\npath = "{path}"\nformat = "{kind}"\ncache = "writeback"'


def test_what_cannot_be_made_is_refused(launcher: Launcher, base: Path) -> None:
    """With its place, exit code 1, and nothing was made."""
    for text, message in REFUSED.items():
        spec = vm(launcher, f"{text}\n{disk_of(text)}")
        before = {path.name: path.stat().st_mtime_ns for path in base.parent.iterdir()}
        ran = launcher.run(spec)
        assert ran.returncode == 1, text
        assert ran.stderr.startswith(f"{spec}: {message}"), ran.stderr
        before.setdefault("run", 0)
        after = {path.name: path.stat().st_mtime_ns for path in base.parent.iterdir()}
        assert {**after, "run": 0} == {**before, "run": 0}


def test_the_seed_says_what_the_files_say(launcher: Launcher) -> None:
    """A volume that cloud-init knows, made anew at each start, its owner's alone."""
    pycdlib = pytest.importorskip("pycdlib")
    folder = launcher.base
    (folder / "user.yaml").write_text("#cloud-config\nhostname: one\n")
    spec = vm(
        launcher,
        '[[disk]]\npath = "seed.iso"\nreadonly = true\ncache = "writeback"\n'
        '[cloud_init]\nseed = "seed.iso"\nuser_data = "user.yaml"\n',
    )
    for hostname in ("one", "two"):
        (folder / "user.yaml").write_text(f"#cloud-config\nhostname: {hostname}\n")
        ran = launcher.run(spec)
        assert ran.returncode == 0, ran.stderr
        assert (folder / "seed.iso").stat().st_mode & 0o777 == 0o600
        iso = pycdlib.PyCdlib()
        iso.open(str(folder / "seed.iso"))
        assert iso.pvd.volume_identifier.decode().strip() == "cidata"
        names = [child.file_identifier().decode("utf-16-be") for child in
                 iso.list_children(joliet_path="/") if child.is_file()]  # fmt: skip
        assert names == ["meta-data", "user-data"]
        with iso.open_file_from_iso(rr_path="/user-data") as file:
            assert file.read().decode() == f"#cloud-config\nhostname: {hostname}\n"
        with iso.open_file_from_iso(rr_path="/meta-data") as file:
            meta = json.loads(file.read())
        assert meta["local-hostname"] == "made"
        iso.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_files_are_made_by_him(launcher: Launcher) -> None:
    """In his folder, and by root in root's: they are his, and nothing is made through his links."""
    pytest.importorskip("pycdlib")
    nobody = pwd.getpwnam("nobody")
    for folder in (launcher.base, *launcher.base.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    home, closed, images = (launcher.base / name for name in ("home", "closed", "images"))
    for folder in (home, images):
        folder.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    closed.mkdir(mode=0o700)
    text = "\n".join(
        f'[[disk]]\npath = "{path}"\nformat = "{kind}"\ncache = "writeback"'
        for path, kind in (("home/a", "qcow2"), ("images/b", "raw"), ("home/s", "raw"))
    )
    text += (
        '\n[[image]]\npath = "home/a"\nsize = "1MiB"\n'
        '[[image]]\npath = "images/b"\nformat = "raw"\nsize = "1MiB"\n'
        '[cloud_init]\nseed = "home/s"\nuser_data = "home/user.yaml"\n'
    )
    (home / "user.yaml").write_text("#cloud-config\n{}\n")
    spec = vm(launcher, text)
    spec.write_text(spec.read_text().replace('accel = "tcg"', 'accel = "tcg"\nuser = "nobody"'))
    ran = launcher.run(spec)
    assert ran.returncode == 0, ran.stderr
    made = [home / "a", images / "b", home / "s"]
    assert [path.stat().st_uid for path in made] == [nobody.pw_uid] * 3
    (home / "a").unlink()
    (home / "a").symlink_to(closed / "new")
    (home / "user.yaml").unlink()
    (home / "user.yaml").symlink_to("/etc/shadow")
    ran = launcher.run(spec)
    assert ran.returncode == 1
    assert "disk[0].path: found no permission for" in ran.stderr, ran.stderr
    assert list(closed.iterdir()) == []
    spec.write_text(spec.read_text().replace("home/a", "home/c"))
    ran = launcher.run(spec)
    assert ran.returncode == 1
    assert "cloud_init.user_data: found no permission for" in ran.stderr, ran.stderr
