"""What becomes QEMU or a helper: a process that waits at a gate until it is where it belongs.

It is run as a program of its own, with nothing but the standard library::

    python3 -I -S child.py GATE PARENT PRIVILEGES IDS MOVES LOCKED COUNT FILE… COUNT DIRECTORY… \
        COUNT NODE… PROGRAM ARGUMENT…

``GATE`` is a descriptor: one byte on it lets the program run, its end does not. So QEMU is in its
control groups before its first instruction, and all its memory is charged there. ``IDS`` is
``UID:GID:GROUP,GROUP`` to become that user for good, or empty; with ``PRIVILEGES`` ``keep`` the
program's own programs may be setuid, with ``drop`` they gain nothing (``no_new_privs``). ``MOVES``
is ``FROM:TO,FROM:TO``: descriptors that the program knows by other numbers, or empty. ``LOCKED`` is
how many bytes it may lock at least, -1 for all (``RLIMIT_MEMLOCK``). A ``FILE`` is
``WHO:NUMBER:FLAGS:PATH``: what is opened under that number, by ``us`` or as the ``user``. With a
``DIRECTORY`` the program has a mount namespace of its own, read-only but for those directories;
where the kernel does not let us make one that is said, and it runs without. Each ``NODE`` is a file
in ``/dev/vfio`` that is its user's there, beside ``/dev/vfio/vfio`` the only ones; on the host it
stays whose it is. When
``PARENT`` dies, however that happens, QEMU gets SIGTERM, at which it writes its disks out and quits
(``os_setup_signal_handling()``, os-posix.c): nobody would follow it, or restore the host after it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
import struct
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): sent when the thread that forked us ends; a change of ids resets it, and an execve of
what is setuid."""

PR_SET_NO_NEW_PRIVS = 38

# linux/sched.h, linux/mount.h, linux/fcntl.h, asm/unistd_64.h
CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
MS_NOSUID, MS_NOEXEC = 1 << 1, 1 << 3
MOUNT_ATTR_RDONLY = 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442

VFIO = "/dev/vfio"
CONTAINER = "/dev/vfio/vfio"
"""Open to everybody: by itself it gives nothing (Documentation/driver-api/vfio.rst)."""

NOT_STARTED = 127
"""The exit status when the program could not be run, as a shell's."""


def command(  # noqa: PLR0913 -- the words of a command line
    gate: int,
    *,
    gains: bool,
    ids: str,
    moves: dict[int, int],
    locked: int = 0,
    files: list[str] | None = None,
    rooms: list[str] | None = None,
    nodes: list[str] | None = None,
) -> list[str]:
    """The words that start a child of ours; the program and its arguments follow.

    ``gains`` is whether what the program starts may be setuid, ``files`` are opened for it
    (``file_of``), ``rooms`` are the only directories that it can write to, if there are any, and
    ``nodes`` the only files of ``/dev/vfio`` that it has then.
    """
    lists = [files or [], rooms or [], nodes or []]
    return [
        *(sys.executable, "-I", "-S", __file__, str(gate), str(os.getpid())),
        *("keep" if gains else "drop", ids),
        ",".join(f"{old}:{new}" for old, new in moves.items()),
        str(locked),
        *(word for each in lists for word in (str(len(each)), *each)),
    ]


def file_of(path: str, number: int, flags: int, *, as_user: bool) -> str:
    """What says that a file is to be opened."""
    return f"{'user' if as_user else 'us'}:{number}:{flags}:{path}"


def main(argv: list[str]) -> int:
    """Wait at the gate, then become the program; return only if that does not come to pass."""
    gate, parent, privileges, ids, moves, locked, *rest = argv
    files, rest = _counted(rest)
    rooms, rest = _counted(rest)
    nodes, command = _counted(rest)
    opened = os.read(int(gate), 1)
    os.close(int(gate))
    if not opened:
        return NOT_STARTED
    try:
        _move([tuple(map(int, each.split(":"))) for each in moves.split(",") if each])
        for file in files:
            _open(file, ids)
        _let_lock(int(locked))
        if rooms:
            _confine(rooms, nodes, ids)
        if ids:
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
    """Open a file under its number; for that alone are we the one who is to open it."""
    who, number, flags, path = file.split(":", 3)
    is_another = bool(who == "user" and ids)
    ours = os.getgroups()
    if is_another:
        uid, gid, groups = ids.split(":")
        os.setgroups([int(group) for group in groups.split(",") if group])
        os.setegid(int(gid))
        os.seteuid(int(uid))
    try:
        opened = os.open(path, int(flags))
    finally:
        if is_another:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(ours)
    os.dup2(opened, int(number))
    os.close(opened)


def _counted(words: list[str]) -> tuple[list[str], list[str]]:
    """A count's words, and what follows them."""
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


def _confine(rooms: list[str], nodes: list[str], ids: str) -> None:
    """Have a mount namespace in which only these directories can be written to.

    The files of ``/dev/vfio`` in it belong to whom ``ids`` names.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), function)

    def set_attributes(path: str, *, add: int, clear: int) -> None:
        attributes = struct.pack("=QQQQ", add, clear, 0, 0)
        size = ctypes.c_size_t(len(attributes))
        flags = ctypes.c_uint(AT_RECURSIVE)
        where = (ctypes.c_int(AT_FDCWD), path.encode(), flags, attributes, size)
        call("syscall", ctypes.c_long(SYS_MOUNT_SETATTR), *where)

    rooms = [room for room in rooms if os.path.isdir(room)]  # noqa: PTH112 -- nothing is imported
    devices = {node: os.stat(node).st_rdev for node in nodes}  # noqa: PTH116
    try:
        call("unshare", CLONE_NEWNS)
        # What is mounted on the host meanwhile is seen; nothing that is done here is seen there.
        call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
        for room in rooms:
            bound = ctypes.c_ulong(MS_BIND | MS_REC)
            call("mount", room.encode(), room.encode(), None, bound, None)
        if devices:
            flags = ctypes.c_ulong(MS_NOSUID | MS_NOEXEC)
            container = os.stat(CONTAINER).st_rdev  # noqa: PTH116
            call("mount", b"kvm-launch", VFIO.encode(), b"tmpfs", flags, b"mode=0755,size=64k")
            _make_node(CONTAINER, container, "")
            for node, device in devices.items():
                _make_node(node, device, ids)
        set_attributes("/", add=MOUNT_ATTR_RDONLY, clear=0)
    except OSError as error:  # a container may not, and Linux before 5.12 cannot
        print(f"nothing is read-only to it: {error.filename}: {error.strerror}", file=sys.stderr)
        return
    for room in rooms:
        set_attributes(room, add=0, clear=MOUNT_ATTR_RDONLY)


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
