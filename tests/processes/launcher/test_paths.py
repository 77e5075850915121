"""Root's work with files for a VM of another user: nothing that the user could not do himself.

The folders are real, and the user is. Without root nobody becomes anybody, and none of it is done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

from kvm_launch.prepare import (
    checks,
    cloud_init,
    disks,
    helper_programs,
    images,
    paths,
    persistent_state,
)
from kvm_launch.prepare.helper_programs import helpers_here
from kvm_launch.prepare.helper_spec import needed
from kvm_launch.prepare.images import QEMU_IMG
from kvm_launch.prepare.user import User, ids_of, user_of
from kvm_launch.spawn import privileges
from kvmhooks.closed import is_roots_alone, settled
from kvmhooks.errors import KvmhooksError, LaunchError, SpecError
from kvmhooks.qemu import emulator
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.device import hints_of
from tests.golden.cases import golden_host

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(not QEMU_IMG.exists(), reason="no qemu-img here: qemu-utils"),
]

NOBODY = pwd.getpwnam("nobody")
USER = User("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))
SECRET = b"known to root alone\n" * 40
HEAD = 'name = "web"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'


@pytest.fixture
def hall() -> Iterator[Path]:
    """A folder of root's with a ``home`` of nobody's, and a ``closed`` one with secrets."""
    with tempfile.TemporaryDirectory(prefix="kvmhooks-hall-") as folder:
        hall = Path(folder)
        hall.chmod(0o755)
        (hall / "home").mkdir()
        os.chown(hall / "home", USER.uid, USER.gid)
        (hall / "images").mkdir()
        closed = hall / "closed"
        closed.mkdir(mode=0o700)
        (closed / "secret").write_bytes(SECRET)
        (closed / "secret").chmod(0o600)
        (closed / "folder").mkdir(mode=0o700)
        (closed / "open").mkdir()
        (closed / "open" / "known").write_bytes(SECRET)
        (closed / "program").write_text(f"#!/bin/sh\ntouch {closed}/ran\n")
        (closed / "program").chmod(0o700)
        yield hall


def theirs(path: Path) -> Path:
    """Give what was made to nobody."""
    os.chown(path, USER.uid, USER.gid, follow_symlinks=False)
    return path


def link(path: Path, target: Path | str) -> Path:
    """Make a link of nobody's."""
    path.symlink_to(target)
    return theirs(path)


def all_below(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a folder: what it is, whose, since when, and what stands in it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
        found[str(path.relative_to(folder))] = (*facts, status.st_ctime_ns, content)
    return found


def vm(text: str, folder: Path) -> VmSpec:
    """A VM whose QEMU is nobody."""
    return parse_vm(f'machine.user = "nobody"\n{HEAD}{text}', folder=folder)


KEYS = {
    "machine.emulator": 'machine.emulator = "x"',
    "boot.firmware": 'boot.firmware = "x"',
    "boot.code": 'boot = {firmware = "uefi", code = "x", variables = "v"}',
    "boot.variables": 'boot = {firmware = "uefi", variables = "x"}',
    "boot.template": 'boot = {firmware = "uefi", variables = "v", template = "x"}',
    "boot.kernel": 'boot.kernel = "x"',
    "boot.initrd": 'boot = {kernel = "/etc/hostname", initrd = "x"}',
    "memory.path": 'memory.backend = "file"\nmemory.path = "x"',
    "disk.path": 'disk = [{path = "x"}]',
    "disk.encryption.key": 'disk = [{path = "d", encryption = {key = "x", secret = '
    '"00000000-0000-4000-8000-000000000001"}}]',
    "net.socket": 'net = [{type = "vhost-user", socket = "x", server = true}]',
    "net.path": 'net = [{type = "vdpa", path = "x"}]',
    "pci.rom": 'pci = [{address = "0000:01:00.0", rom = "x"}]',
    "filesystem.path": 'filesystem = [{path = "x", tag = "t"}]',
    "channel.socket": 'channel = [{name = "c", socket = "x"}]',
    "input.path": 'input = [{type = "evdev", path = "x"}]',
    "tpm.state": 'tpm = {model = "crb", state = "x"}',
    "helper.socket": 'helper = [{command = ["/bin/true"], socket = "x"}]',
    "helper.command": 'helper = [{command = ["FOLDER/x"], user = "root"}]',
    "run.writable": 'run.writable = ["x"]',
    "image.path": 'image = [{path = "x", size = "1MiB"}]\ndisk = [{path = "x", format = "qcow2"}]',
    "image.base": 'image = [{path = "i", base = "x", base_format = "raw", size = "1MiB"}]\n'
    'disk = [{path = "i", format = "qcow2"}]',
    "cloud_init.seed": 'cloud_init.seed = "x"\ndisk = [{path = "x"}]',
    "cloud_init.user_data": 'cloud_init = {seed = "s", user_data = "x"}\ndisk = [{path = "s"}]',
    "cloud_init.meta_data": 'cloud_init = {seed = "s", meta_data = "x"}\ndisk = [{path = "s"}]',
    "cloud_init.network": 'cloud_init = {seed = "s", network = "x"}\ndisk = [{path = "s"}]',
    "tuning.io.device.path": 'tuning.io.device = [{path = "x", weight = 100}]',
}
"""A spec for each key that names a file, with ``x`` there."""

WORDS = {"helper.command"}
"""Words that are no path to the spec, but a file all the same."""


def keys_of(kind: Any, at: str = "") -> Iterator[str]:
    """Every key of a spec that is a path, however deep."""
    if kind is Path:
        yield at
    elif attrs.has(kind):
        for name, inner in hints_of(kind).items():
            yield from keys_of(inner, f"{at}.{name}" if at else name)
    else:
        for inner in get_args(kind):
            yield from keys_of(inner, at)


def test_every_key_that_names_a_file_is_attacked() -> None:
    """A new one fails here until it has its line in ``KEYS``."""
    assert KEYS.keys() - WORDS == set(keys_of(VmSpec))


def before_qemu(spec: VmSpec) -> list[str]:
    """Do all that root does before there is a QEMU, each step though an earlier one was refused.

    What is checked may be another thing by the time that it is made.
    """
    user = user_of(spec)
    steps: list[Callable[[], object]] = [
        lambda: emulator.find(spec),
        lambda: checks.check(spec, user, binds=True),
        lambda: checks.check_roms(spec, golden_host("laptop"), user),
        lambda: images.check(spec, user),
        lambda: cloud_init.check(spec, user),
        lambda: images.make(spec, user),
        lambda: persistent_state.make(spec, user),
        lambda: cloud_init.make(spec, "00000000-0000-4000-8000-000000000001", user),
        lambda: disks.layers_of(spec, user),
    ]
    wanted = set(needed(spec, is_root=True).values())
    if helper_programs.found(wanted).keys() == wanted:
        steps.append(lambda: helpers_here(spec, user))
    messages = []
    for step in steps:
        try:
            step()
        except KvmhooksError as error:
            messages.append(str(error))
    return messages


FOLDERS = {"memory.path", "filesystem.path", "tpm.state", "run.writable"}
PROGRAMS = {"machine.emulator", "helper.command"}


@pytest.mark.parametrize("key", KEYS)
def test_a_link_of_the_users_gives_him_nothing_of_roots(key: str, hall: Path) -> None:
    """For each key that names a file: what is root's is as it was, and nothing of it is elsewhere.

    Nothing is made in root's folder either, nor given to the user.
    """
    pytest.importorskip("pycdlib")
    home, closed = hall / "home", hall / "closed"
    before = all_below(closed)
    what = "folder" if key in FOLDERS else "program" if key in PROGRAMS else "secret"
    for target in (what, f"{'folder/' * (key in FOLDERS)}new"):
        place = Path(tempfile.mkdtemp(dir=home))
        theirs(place)
        link(place / "x", closed / target)
        before_qemu(vm(KEYS[key].replace("FOLDER", str(place)), place))
        assert all_below(closed) == before
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_uid == USER.uid
            assert SECRET not in path.read_bytes(), path


@pytest.mark.parametrize("key", ["image.path", "cloud_init.seed", "boot.variables", "tpm.state"])
def test_what_is_made_is_the_users(key: str, hall: Path) -> None:
    """In his folder, in one of root's, and where a link of his own leads; and nothing else is."""
    pytest.importorskip("pycdlib")
    home = hall / "home"
    for place in ("home/x", "images/x", "home/linked/x"):
        linked = theirs_folder(home / "real")
        link(home / "linked", linked)
        template = hall / "template"
        template.write_bytes(b"variables")
        text = KEYS[key].replace('"x"', f'"{hall}/{place}"').replace(
            "variables = ", f'template = "{template}", variables = '
        )  # fmt: skip
        before_qemu(vm(text, home))
        status = (hall / place).lstat()
        assert (status.st_uid, status.st_gid) == (USER.uid, USER.gid)
        assert {path.name for path in hall.rglob(".*")} == set()
        shutil.rmtree(linked)
        (home / "linked").unlink()
        if place == "images/x":
            path = hall / place
            path.rmdir() if path.is_dir() else path.unlink()


def theirs_folder(path: Path) -> Path:
    """A folder of nobody's."""
    path.mkdir()
    return theirs(path)


SETTLED = [
    ("images/a", "images/a"),
    ("images/none/a", None),
    ("images", "images"),
    ("closed/secret", "closed/secret"),
    ("closed/secret/below", None),
    ("closed/nothing", "closed/nothing"),
    ("home", "home"),
    ("home/a", None),
    ("home/to-images/a", None),
    ("to-images/a", "images/a"),
    ("to-images-relative/a", "images/a"),
    ("round", None),
    ("to-home", None),
    ("to-secret", "closed/secret"),
    ("to-nothing", "closed/new"),
    ("for-all/a", None),
    ("for-all", "for-all"),
    ("sticky/a", None),
    ("sticky/file", None),
    ("sticky/link", None),
    ("sticky/root", "sticky/root"),
    ("sticky/root/a", "sticky/root/a"),
    ("sticky/theirs/a", None),
    ("group/a", None),
]


@pytest.mark.parametrize(("path", "expected"), SETTLED, ids=[path for path, _ in SETTLED])
def test_only_what_nobody_else_can_change_is_roots_to_do(
    hall: Path, path: str, expected: str | None
) -> None:
    """Each directory on the way, and on that of each link, decides; the path that is used has none.

    In a folder with the sticky bit, as ``/tmp``, only a directory of root's is nobody else's to
    take away, and a file there may be a link that anybody has made.
    """
    for name, mode in {"for-all": 0o777, "sticky": 0o1777, "group": 0o775}.items():
        (hall / name).mkdir()
        (hall / name).chmod(mode)
    (hall / "sticky" / "root").mkdir()
    theirs_folder(hall / "sticky" / "theirs")
    (hall / "sticky" / "file").touch()
    links = {
        "to-images": f"{hall}/images", "to-images-relative": "./closed/../images",
        "round": "round", "to-home": f"{hall}/home/a", "to-secret": "closed/secret",
        "to-nothing": f"{hall}/closed/new", "sticky/link": f"{hall}/images",
    }  # fmt: skip
    for name, target in links.items():
        (hall / name).symlink_to(target)
    link(hall / "home" / "to-images", hall / "images")
    assert settled(hall / path) == (None if expected is None else hall / expected)


def test_a_link_at_the_end_is_meant_itself_where_it_is_replaced(hall: Path) -> None:
    """Then what it leads to is no matter."""
    (hall / "seed").symlink_to(hall / "home" / "x")
    assert settled(hall / "seed", follows=False) == hall / "seed"
    paths.replace(hall / "seed", b"new", USER)
    assert (hall / "seed").lstat().st_uid == USER.uid
    assert not (hall / "home" / "x").exists()


def test_a_program_of_roots_is_nobody_elses(hall: Path) -> None:
    """Neither it nor what leads to it."""
    (hall / "images" / "mine").touch()
    assert is_roots_alone(hall / "images" / "mine")
    (hall / "images" / "mine").chmod(0o775)
    assert not is_roots_alone(hall / "images" / "mine")
    assert not is_roots_alone(theirs_file(hall / "images" / "theirs"))
    assert not is_roots_alone(theirs_file(hall / "home" / "theirs"))


def theirs_file(path: Path) -> Path:
    """An empty file of nobody's."""
    path.touch()
    return theirs(path)


@pytest.mark.parametrize("who", ["theirs", "roots", "nobody else"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "/dev/null", "nothing"])
def test_what_is_no_file_is_not_read_nor_waited_for(hall: Path, who: str, kind: str) -> None:
    """It is so as root, as the user, and without any other user."""
    path = hall / ("home" if who == "theirs" else "images") / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to(kind)
    user = None if who == "nobody else" else USER
    message = "No such file" if kind == "nothing" else "no regular file|No such device"
    begun = time.monotonic()
    with pytest.raises(OSError, match=message) as raised:
        paths.read(path, user, limit=10)
    assert time.monotonic() - begun < 10
    assert raised.value.filename in {str(path), kind}


def test_no_more_is_read_than_is_asked_for(hall: Path) -> None:
    """The file may grow to anything meanwhile."""
    for folder, user in (("home", USER), ("images", USER), ("images", None)):
        (hall / folder / "x").write_bytes(b"0123456789")
        assert paths.read(hall / folder / "x", user, limit=4) == b"0123"
        assert paths.read(hall / folder / "x", user, start=8, limit=4) == b"89"


def test_cloud_inits_files_have_a_bound(hall: Path) -> None:
    """They are in memory, all at once; told before, and once more when they are read."""
    for folder in ("home", "images"):
        data = hall / folder / "data"
        with data.open("wb") as file:
            file.truncate(cloud_init.MOST_BYTES + 1)
        data.chmod(0o644)
        text = f'cloud_init = {{seed = "s", user_data = "{data}"}}\ndisk = [{{path = "s"}}]'
        spec = vm(text, hall / "home")
        message = (
            rf"cloud_init\.user_data: found {cloud_init.MOST_BYTES + 1} bytes .*expected 16 MiB"
        )
        with pytest.raises(SpecError, match=message):
            cloud_init.check(spec, USER)
        with pytest.raises(LaunchError, match="found more than 16 MiB"):
            cloud_init.make(spec, "u", USER)


def test_a_refused_seed_leaves_nothing(hall: Path) -> None:
    """The old one stays, and no half of a new one is beside it."""
    pytest.importorskip("pycdlib")
    for folder, user in (("home", USER), ("images", USER), ("images", None)):
        place = hall / folder
        text = 'cloud_init = {seed = "s", user_data = "data"}\ndisk = [{path = "s"}]'
        spec = vm(text, place)
        theirs_file(place / "data")
        cloud_init.make(spec, "u", user)
        before = (place / "s").read_bytes()
        (place / "data").unlink()
        with pytest.raises(LaunchError, match="data: No such file"):
            cloud_init.make(spec, "u", user)
        assert {path.name for path in place.iterdir()} == {"s"}
        assert (place / "s").read_bytes() == before


def test_what_cannot_be_written_whole_is_not_there(hall: Path) -> None:
    """The disk is full: here the limit on a file's size, which children inherit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder, user in (("home", USER), ("images", USER), ("images", None)):
        place = hall / folder
        paths.replace(place / "seed", b"old", user)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            for write in (paths.replace, paths.make):
                with pytest.raises(OSError, match="File too large"):
                    write(place / ("seed" if write is paths.replace else "new"), bytes(8192), user)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == {"seed": b"old"}


def test_a_new_seed_is_not_written_through_a_link(hall: Path) -> None:
    """A link by one who knows its name beforehand goes."""
    pytest.importorskip("pycdlib")
    before = all_below(hall / "closed")
    spec = vm('cloud_init.seed = "s"\ndisk = [{path = "s"}]', hall / "home")
    link(hall / "home" / ".s.new", hall / "closed" / "secret")
    cloud_init.make(spec, "u", USER)
    assert {path.name for path in (hall / "home").iterdir()} == {"s"}
    assert (hall / "home" / "s").stat().st_uid == USER.uid
    assert all_below(hall / "closed") == before


def test_an_image_of_roots_folder_is_made_over_a_base_of_the_users(hall: Path) -> None:
    """Root makes it and opens nothing of the base: the user has said how large that is."""
    base = hall / "home" / "base.qcow2"
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "qcow2", base, "3M"], check=True)
    theirs(base)
    made = f"{hall}/images/x"
    text = f'image = [{{path = "{made}", base = "{base}"}}]\n'
    text += f'disk = [{{path = "{made}", format = "qcow2"}}]'
    spec = vm(text, hall)
    images.check(spec, USER)
    assert images.make(spec, USER) == [hall / "images" / "x"]
    images.check(spec, USER)
    status = (hall / "images" / "x").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (USER.uid, 0o644)
    known = images.info(hall / "images" / "x", "qcow2", USER)
    assert not isinstance(known, str)
    assert (known["virtual-size"], known["full-backing-filename"]) == (3 << 20, str(base))


def test_images_are_all_made_or_none(hall: Path) -> None:
    """The second cannot be made, whoever makes them."""
    for folder in ("home", "images"):
        paths_there = (f"{folder}/a", "no/b")
        made = ", ".join(f'{{path = "{path}", size = "1MiB"}}' for path in paths_there)
        disks = ", ".join(f'{{path = "{path}", format = "qcow2"}}' for path in paths_there)
        text = f"image = [{made}]\ndisk = [{disks}]"
        with pytest.raises(LaunchError, match="no: No such file"):
            images.make(vm(text, hall), USER)
        assert list((hall / folder).iterdir()) == []


def test_an_image_is_never_made_over_anything(hall: Path) -> None:
    """Not though it came between the look and the making."""
    for folder in ("home", "images"):
        (hall / folder / "x").write_bytes(b"kept")
        with pytest.raises(FileExistsError), paths.blank(hall / folder / "x", USER):
            pass
        assert (hall / folder / "x").read_bytes() == b"kept"


def test_a_link_of_the_administrators_to_where_an_image_is_to_be_is_followed(hall: Path) -> None:
    """With another user and without, as it ever was; what fails takes nothing but what it made."""
    for user in (None, USER):
        (hall / "x").symlink_to("images/real")
        images.make(vm(KEYS["image.path"], hall), user)
        assert (hall / "images" / "real").stat().st_uid == (0 if user is None else USER.uid)
        assert (hall / "x").is_symlink()
        (hall / "images" / "real").unlink()
        (hall / "x").unlink()


def test_a_link_that_comes_and_goes_is_never_followed_as_root(hall: Path) -> None:
    """The user puts a link of his in the place of his folder and takes it away, all the time."""
    pytest.importorskip("pycdlib")
    home, closed = hall / "home", hall / "closed"
    (closed / "folder").chmod(0o755)
    (closed / "folder" / "data").write_bytes(SECRET)
    (closed / "folder" / "data").chmod(0o600)
    before = all_below(closed)
    theirs_folder(home / "real")
    theirs_file(home / "real" / "data")
    over = threading.Event()

    def swap() -> None:
        at = 0
        while not over.is_set():
            at += 1
            target = closed / "folder" if at % 2 else home / "real"
            (home / "new").symlink_to(target)
            (home / "new").replace(home / "x")

    text = (
        'cloud_init = {seed = "x/s", user_data = "x/data"}\n'
        'disk = [{path = "x/s"}, {path = "x/i", format = "qcow2"}]\n'
        'tpm = {model = "crb", state = "x/tpm"}\nimage = [{path = "x/i", size = "1MiB"}]'
    )
    spec = vm(text, home)
    swapping = threading.Thread(target=swap)
    swapping.start()
    until, tried = time.monotonic() + 3, 0
    try:
        while time.monotonic() < until:
            with contextlib.suppress(KvmhooksError):
                cloud_init.make(spec, "u", USER)
            for make in (images.make, persistent_state.make):
                with contextlib.suppress(KvmhooksError):
                    make(spec, USER)
            tried += 1
    finally:
        over.set()
        swapping.join()
    print(f"{tried} starts")
    assert all_below(closed) == before
    for path in (home / "real").rglob("*"):
        assert path.lstat().st_uid == USER.uid
        assert not path.is_file() or SECRET not in path.read_bytes()


def run_child(hall: Path, *program: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of nobody's, started in root's folder."""
    waiting, opening = os.pipe()
    os.write(opening, b"\1")
    os.close(opening)
    words = privileges.command(waiting, gains=False, ids=ids_of(USER), moves={}, **given)
    try:
        return subprocess.run(
            [*words, *program], pass_fds=[waiting], capture_output=True, text=True, check=False,
            cwd=hall / "closed" / "open", timeout=30,
        )  # fmt: skip
    finally:
        os.close(waiting)


def test_a_program_of_the_users_is_in_no_folder_of_roots(hall: Path) -> None:
    """It would see what is in that, whatever is above it."""
    output = run_child(hall, "/bin/sh", "-c", "pwd; cat known")
    assert output.stdout == "/\n"
    assert "No such file" in output.stderr


@pytest.mark.parametrize("as_user", [True, False])
def test_a_disk_that_is_none_is_not_waited_for(hall: Path, *, as_user: bool) -> None:
    """A FIFO has no writer, and a device may do anything when it is opened."""
    os.mkfifo(hall / "images" / "x")
    (hall / "images" / "x").chmod(0o666)
    for path in (hall / "images" / "x", Path("/dev/null")):
        file = privileges.file_of(str(path), 9, os.O_RDONLY, as_user=as_user)
        output = run_child(hall, "/bin/true", files=[file])
        wanted = f"{path}: found no regular file and no block device, expected one\n"
        assert (output.returncode, output.stderr) == (127, wanted)


def test_a_disk_of_roots_is_opened_past_no_link(hall: Path) -> None:
    """Its path had none when it was decided that root opens it."""
    (hall / "link").symlink_to("closed/secret")
    (hall / "folder").symlink_to("closed")
    cat = ("/bin/sh", "-c", "cat <&9")
    for name, is_had in (("link", False), ("folder/secret", False), ("closed/secret", True)):
        file = privileges.file_of(str(hall / name), 9, os.O_RDONLY, as_user=False)
        output = run_child(hall, *cat, files=[file])
        assert (output.stdout.encode() == SECRET) is is_had
        assert is_had or output.stderr.startswith(f"{hall}/{name}: ")


def test_a_writable_dir_is_what_the_user_can_open(hall: Path) -> None:
    """A folder that he cannot come to is closed to his program, though a link of his leads there.

    Only those directories can be written to; one that can be had is written to as the user.
    """
    link(hall / "home" / "x", hall / "closed" / "open")
    theirs_folder(hall / "home" / "own")
    writable_dirs = [
        privileges.writable_dir_of("/tmp", as_user=False),
        privileges.writable_dir_of(str(hall / "home" / "x"), as_user=True),
        privileges.writable_dir_of(str(hall / "home" / "own"), as_user=True),
    ]
    if hall.is_relative_to("/tmp"):
        writable_dirs = writable_dirs[1:]
    write = f"cd {hall}/home; touch own/made; touch other; cat x/known; head -c 1 </dev/null"
    output = run_child(hall, "/bin/sh", "-c", write, writable_dirs=writable_dirs)
    assert f"{hall}/home/x: it cannot be written to: Permission denied" in output.stderr
    if "nothing is read-only to it" not in output.stderr:  # a container may make no namespace
        assert "other" in output.stderr
        assert not (hall / "home" / "other").exists()
    assert output.stdout == ""
    assert (hall / "home" / "own" / "made").stat().st_uid == USER.uid


def test_a_folder_that_the_user_can_change_is_served_by_him(hall: Path) -> None:
    """virtiofsd is root's for root's folder; where the guest could leave setuid files is told."""
    if not helper_programs.found(["virtiofsd"]):
        pytest.skip("no virtiofsd here: qemu-system-common")
    link(hall / "home" / "x", "/")
    folders = ("home/x", "closed", "images")
    text = ", ".join(f'{{path = "{each}", tag = "{at}"}}' for at, each in enumerate(folders))
    spec = vm(f"filesystem = [{text}]", hall)
    own, closed, reached = helpers_here(spec, USER)
    assert own.user == attrs.evolve(USER, groups=())
    assert own.command[:4] == ("/usr/bin/unshare", "-U", "-r", "--")
    assert own.left_out.startswith("every file belongs to one user")
    assert (closed.user, closed.left_out) == (None, "")
    assert reached.user is None
    is_nosuid = bool(os.statvfs(hall / "images").f_flag & os.ST_NOSUID)
    assert ("setuid" in reached.left_out) is not is_nosuid


def test_root_runs_no_program_that_the_user_can_change(hall: Path) -> None:
    """Neither QEMU, to ask what it can do, nor a helper that is root's."""
    program = theirs_file(hall / "home" / "program")
    program.chmod(0o755)
    expected = "found '.*home/program', expected one that nobody but root can change"
    spec = vm(f'machine.emulator = "{program}"', hall)
    with pytest.raises(SpecError, match=rf"machine\.emulator: {expected}"):
        emulator.find(spec)
    own = attrs.evolve(spec, machine=attrs.evolve(spec.machine, user=None))
    assert emulator.find(own) == program
    emulator.find(vm('machine.emulator = "/bin/true"', hall))
    helper = 'helper = [{{command = ["{}"], user = "{}"}}]'
    with pytest.raises(SpecError, match=rf"helper\[0\]\.command: {expected}"):
        checks.check(vm(helper.format(program, "root"), hall), USER)
    checks.check(vm(helper.format(program, "nobody"), hall), USER)


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("look", "out.write(b'[' * 200_000)"),
        ("look", "out.write(b'[]')"),
        ("look", "out.write(b'[[1, 2, 3]]')"),
        ("look", "out.write(b'[5]')"),
        ("look", "out.write(b'x' * (5 << 20))"),
        ("look", "sys.stderr.write('[' * 20_000); sys.exit(1)"),
        ("look", "sys.stderr.write('5'); sys.exit(1)"),
        ("look", "sys.stderr.write('[[], {}, 7]'); sys.exit(1)"),
        ("read", "out.write(b'x' * 11)"),
        ("read", "sys.stderr.write('x' * (1 << 20)); sys.exit(1)"),
    ],
)
def test_whoever_became_the_user_is_believed_nothing(
    verb: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that a process of the user's could not give is an error, in words and bounds."""
    monkeypatch.setattr(paths, "PROGRAM", f"import sys\nout = sys.stdout.buffer\n{body}\n")
    user = User("somebody", os.geteuid(), os.getegid(), ())
    ask: dict[str, Callable[[], object]] = {
        "look": lambda: paths.look([Path("/")], user),
        "read": lambda: paths.read_as(Path("/etc/hostname"), user, limit=10),
    }
    with pytest.raises((LaunchError, OSError)):
        ask[verb]()


def test_root_does_not_look_at_a_folder_that_the_user_can_change(
    hall: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what nobody else can rename is looked at by root, and what fails there is told."""
    if not helper_programs.found(["virtiofsd"]):
        pytest.skip("no virtiofsd here: qemu-system-common")
    (hall / "home" / "x").mkdir()
    folders = ("home/x", "images")
    text = ", ".join(f'{{path = "{each}", tag = "{at}"}}' for at, each in enumerate(folders))
    looked = []

    def gone(path: Path) -> None:
        looked.append(path)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(os, "statvfs", gone)
    with pytest.raises(LaunchError, match="images: No such file or directory"):
        helpers_here(vm(f"filesystem = [{text}]", hall), USER)
    assert looked == [hall / "images"]
