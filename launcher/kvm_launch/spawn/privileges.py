"""The privileges of a child that becomes QEMU or a helper: its user, files, mounts and limits.

It waits at a pipe until it is where it belongs, has opened what its user cannot, becomes that user
and then the program. It is run as a program of its own, with nothing but the standard library, by
its text: where this file was there may be another version's by now, or none::

    python3 -I -S -c TEXT PIPE PARENT PRIVILEGES IDS MOVES LOCKED COUNT FILE... COUNT DIRECTORY... \
        COUNT NODE... PROGRAM ARGUMENT...

``PIPE`` is a descriptor: one byte on it lets the program run, its end does not. So QEMU is in its
control groups before its first instruction, and all its memory is charged there. ``IDS`` is
``UID:GID:GROUP,GROUP`` to become that user for good, or empty; with ``PRIVILEGES`` ``keep`` the
program's own programs may be setuid, with ``drop`` they gain nothing (``no_new_privs``). ``MOVES``
is ``FROM:TO,FROM:TO``: descriptors that the program knows by other numbers, or empty. ``LOCKED`` is
how many bytes it may lock at least, -1 for all (``RLIMIT_MEMLOCK``). A ``FILE`` is
``WHO:NUMBER:FLAGS:PATH``: what is opened under that number, as the ``user``, or by ``us``, then
past no link. With a ``DIRECTORY``, which is ``WHO:PATH``, the program has a mount namespace of its
own, read-only but for those directories. Each is opened once, and that one is meant, whatever its
path leads to by then. Where the kernel does not let us make a namespace that is said, and the
program runs without. Each ``NODE`` is a file in ``/dev/vfio`` that is its user's there, beside
``/dev/vfio/vfio`` the only ones; on the host it stays whose it is. When
``PARENT`` dies, however that happens, QEMU gets SIGTERM, at which it writes its disks out and quits
(``os_setup_signal_handling()``, os-posix.c): nobody would follow it, or restore the host after it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""prctl(2): sent when the thread that forked us ends; a change of ids resets it, and an execve of
what is setuid."""

PR_SET_NO_NEW_PRIVS = 38

# linux/sched.h, linux/mount.h, linux/fcntl.h, asm-generic/unistd.h
CLONE_NEWNS = 0x00020000
MS_REC, MS_SLAVE = 1 << 14, 1 << 19
MS_NOSUID, MS_NOEXEC = 1 << 1, 1 << 3
MOUNT_ATTR_RDONLY = 1
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442

VFIO = "/dev/vfio"
CONTAINER = "/dev/vfio/vfio"
"""Open to everybody: by itself it gives nothing (Documentation/driver-api/vfio.rst)."""

NOT_STARTED = 127
"""The exit status when the program could not be run, as a shell's."""


def command(  # noqa: PLR0913 -- the words of a command line
    start_pipe: int,
    *,
    gains: bool,
    ids: str,
    moves: dict[int, int],
    locked: int = 0,
    files: list[str] | None = None,
    writable_dirs: list[str] | None = None,
    device_nodes: list[str] | None = None,
) -> list[str]:
    """Return the words that start a child of ours; the program and its arguments follow.

    ``gains`` is whether what the program starts may be setuid, ``files`` are opened for it
    (``file_of``), ``writable_dirs`` are the only directories that it can write to, if there are
    any, and ``device_nodes`` the only files of ``/dev/vfio`` that it has then.
    """
    lists = [files or [], writable_dirs or [], device_nodes or []]
    return [
        *(sys.executable, "-I", "-S", "-c", TEXT, str(start_pipe), str(os.getpid())),
        *("keep" if gains else "drop", ids),
        ",".join(f"{old}:{new}" for old, new in moves.items()),
        str(locked),
        *(word for each in lists for word in (str(len(each)), *each)),
    ]


def file_of(path: str, number: int, flags: int, *, as_user: bool) -> str:
    """Return the word that a file is to be opened; by us only where the path has no links."""
    return f"{'user' if as_user else 'us'}:{number}:{flags}:{path}"


def writable_dir_of(path: str, *, as_user: bool) -> str:
    """Return what says that a directory can be written to."""
    return f"{'user' if as_user else 'us'}:{path}"


def main(argv: list[str]) -> int:
    """Wait at the start pipe, then become the program; return only if that fails."""
    start_pipe, parent, privileges, ids, moves, locked, *rest = argv
    files, rest = _counted(rest)
    writable_dirs, rest = _counted(rest)
    device_nodes, command = _counted(rest)
    opened = os.read(int(start_pipe), 1)
    os.close(int(start_pipe))
    if not opened:
        return NOT_STARTED
    try:
        _move([tuple(map(int, each.split(":"))) for each in moves.split(",") if each])
        for file in files:
            _open(file, ids)
        _let_lock(int(locked))
        if writable_dirs:
            _confine(writable_dirs, device_nodes, ids)
        if ids:
            os.chdir("/")  # to be in a folder is to see what is in it, whatever is above
            _become(*ids.split(":"))
        if privileges == "drop":
            prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before it could be told
            return NOT_STARTED
        os.execv(command[0], command)  # noqa: S606 -- no shell on purpose
    except OSError as error:
        print(f"{error.filename or command[0]}: {error.strerror}", file=sys.stderr)
    return NOT_STARTED


def _move(moves: list[tuple[int, ...]]) -> None:
    """Give descriptors the numbers that they are known by; a target may be another's source."""
    above = max((max(move) for move in moves), default=0) + 1
    waiting = [(fcntl.fcntl(old, fcntl.F_DUPFD_CLOEXEC, above), new) for old, new in moves]
    for old, _ in moves:
        os.close(old)
    for old, new in waiting:
        os.dup2(old, new)
        os.close(old)


def _open(file: str, ids: str) -> None:
    """Open a regular file or a block device under its number, as the one who is to open it.

    It is looked at before (O_PATH, open(2)): a FIFO would be waited for.
    """
    who, number, flags, path = file.split(":", 3)

    def opened() -> int:
        links = os.O_NOFOLLOW if who == "us" and ids else 0
        seen = _place(path, os.O_PATH | links, is_linkless=bool(links))
        try:
            _check_disk(os.fstat(seen))
            return os.open(f"/proc/self/fd/{seen}", int(flags))
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(seen)

    descriptor = _as(ids if who == "user" else "", opened)
    os.dup2(descriptor, int(number))
    os.close(descriptor)


def _check_disk(status: os.stat_result) -> None:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise OSError(errno.EINVAL, "found no regular file and no block device, expected one")


def _place(path: str, flags: int, *, is_linkless: bool) -> int:
    """Open a path; linkless, each part of it below the one before, and none a link."""
    if not is_linkless:
        return os.open(path, flags)
    *above, name = path.strip("/").split("/")
    directory = os.open("/", os.O_PATH)
    try:
        for part in above:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(directory)


def _as(ids: str, opened: Callable[[], int]) -> int:
    """Give what ``opened`` gives to whom ``ids`` names; we are that one meanwhile."""
    if not ids:
        return opened()
    uid, gid, groups = ids.split(":")
    ours = os.getgroups()
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setegid(int(gid))
    os.seteuid(int(uid))
    try:
        return opened()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(ours)


def _counted(words: list[str]) -> tuple[list[str], list[str]]:
    """Return a count's words, and what follows them."""
    end = 1 + int(words[0])
    return words[1:end], words[end:]


def _let_lock(size: int) -> None:
    """Raise the limit on locked memory as far as we may: only root gets beyond the hard one."""
    if size == 0:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    known = {soft, hard, resource.RLIM_INFINITY if size < 0 else size}
    most = resource.RLIM_INFINITY if resource.RLIM_INFINITY in known else max(known)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
    except ValueError:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _confine(writable_dirs: list[str], device_nodes: list[str], ids: str) -> None:
    """Have a mount namespace in which only these directories can be written to.

    The files of ``/dev/vfio`` in it belong to whom ``ids`` names.
    """
    devices = {node: os.stat(node).st_rdev for node in device_nodes}  # noqa: PTH116
    try:
        _call("unshare", CLONE_NEWNS)
        # New mounts of the host are seen; nothing that is done here is seen there.
        _call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
        if devices:
            _give_nodes(devices, ids)
        if any(
            writable_dir.endswith(":/") for writable_dir in writable_dirs
        ):  # nothing is left to protect
            return
        places = [
            place
            for writable_dir in writable_dirs
            if (place := _open_writable(writable_dir, ids)) is not None
        ]
        trees = [(place, _clone(place)) for place in places]
        _protect()
    except OSError as error:  # a container may not, and Linux before 5.12 cannot
        print(f"nothing is read-only to it: {error.filename}: {error.strerror}", file=sys.stderr)
        return
    for place, tree in trees:
        _mount_at(place, tree)
        os.close(tree)
        os.close(place)


def _call(function: str, *arguments: object) -> int:
    """Call a function of the C library. Raises ``OSError``."""
    result: int = getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
    return result


def _system_call(name: str, number: int, *arguments: object) -> int:
    """Call what the C library may have no function for. Raises ``OSError``."""
    try:
        return _call("syscall", ctypes.c_long(number), *arguments)
    except OSError as error:
        error.filename = name
        raise


def _clone(directory: int) -> int:
    """Copy all that is mounted there, as it is now, to be mounted elsewhere (open_tree(2))."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    what = (ctypes.c_int(directory), b"", ctypes.c_uint(flags))
    return _system_call("open_tree", SYS_OPEN_TREE, *what)


def _protect() -> None:
    """Have everything that is mounted be read-only (mount_setattr(2))."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    where = (ctypes.c_int(AT_FDCWD), b"/", ctypes.c_uint(AT_RECURSIVE))
    size = ctypes.c_size_t(len(attributes))
    _system_call("mount_setattr", SYS_MOUNT_SETATTR, *where, attributes, size)


def _mount_at(directory: int, tree: int) -> None:
    """Mount a copy (move_mount(2))."""
    flags = ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    what = (ctypes.c_int(tree), b"", ctypes.c_int(directory), b"", flags)
    _system_call("move_mount", SYS_MOVE_MOUNT, *what)


def _open_writable(writable_dir: str, ids: str) -> int | None:
    """Open a directory as the one who is to; None, and said, where it cannot be had."""
    who, path = writable_dir.split(":", 1)
    is_linkless = who == "us" and bool(ids)
    flags = os.O_PATH | os.O_DIRECTORY | (os.O_NOFOLLOW if is_linkless else 0)
    try:
        return _as(
            ids if who == "user" else "", lambda: _place(path, flags, is_linkless=is_linkless)
        )
    except OSError as error:
        print(f"{path}: it cannot be written to: {error.strerror}", file=sys.stderr)
        return None


def _give_nodes(devices: dict[str, int], ids: str) -> None:
    """Have a ``/dev/vfio`` with these files, and the one that is everybody's."""
    flags = ctypes.c_ulong(MS_NOSUID | MS_NOEXEC)
    container = os.stat(CONTAINER).st_rdev  # noqa: PTH116
    _call("mount", b"kvm-launch", VFIO.encode(), b"tmpfs", flags, b"mode=0755,size=64k")
    _make_node(CONTAINER, container, "")
    for node, device in devices.items():
        _make_node(node, device, ids)


def _make_node(path: str, device: int, ids: str) -> None:
    """Make a device's file: of one user, or for everybody."""
    os.mknod(path, stat.S_IFCHR | 0o600, device)
    if ids:
        uid, gid, _ = ids.split(":")
        os.chown(path, int(uid), int(gid))
    else:
        os.chmod(path, 0o666)  # noqa: PTH101, S103 -- as the host has it


def _become(uid: str, gid: str, groups: str) -> None:
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, for which Python has no function. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
else:
    with open(__file__, encoding="ascii") as file:  # noqa: PTH123 -- the program needs no pathlib
        TEXT = file.read()
    """The text of this file as it was loaded, in ASCII: so it is in any locale."""
