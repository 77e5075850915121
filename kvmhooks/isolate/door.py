"""The one door through which isolation reads and changes a host.

Everything is below a root directory. With another root than ``/`` nothing outside of it is read
or changed, wherever its links lead, and no device is opened (``below``). A task's affinity is then
the line of its captured ``status`` file, so that the same code runs on a fake tree. A test may put
a model of the kernel's rules in the place of this class.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmhooks.isolate.bus import Systemd

MAX_READ: Final = 4 << 20
"""More than this is never read from a kernel's file (``/proc/interrupts`` of 8,192 CPUs)."""

MAX_CONFIGURED: Final = 65_536
"""No larger file of an administrator is read."""

_TO_HOLD: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TO_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_AROUND: Final = " \t\n"
_AFFINITY: Final = "Cpus_allowed_list:\t"


class Door:
    """A host below ``root``: files, tasks, the system bus, the clock. Paths have no leading slash.

    Every method raises ``OSError`` with the kernel's own errno.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.join(root, "")  # noqa: PTH118 -- pathlib costs the hook 5 ms
        self.deadline: float | None = None
        """When, on the clock of ``now``, nothing more may be begun."""
        self._held: dict[str, tuple[int, int]] = {}
        """Files that are kept open to be written: the descriptor, and how long the text is."""
        self._written: dict[str, int] = {}
        """Those that were written, and will be read back."""

    @property
    def is_real(self) -> bool:
        """Whether this is the machine itself, and no tree of files."""
        return self.root == "/"

    def at(self, path: str, *, is_followed: bool = True) -> str:
        """Return the path of the machine that a path of the host is."""
        if self.root == "/":
            return "/" + path
        from kvmhooks.isolate import below  # noqa: PLC0415 -- the hook needs none of it

        return below.resolve(self.root, path, is_followed=is_followed)

    def _plain(self, path: str, *, is_followed: bool = True) -> str:
        """Return the same of what is to be opened; no device of a tree is."""
        if self.root == "/":
            return "/" + path
        from kvmhooks.isolate import below  # noqa: PLC0415 -- as in at

        return below.plain(self.root, path, is_followed=is_followed)

    def read(self, path: str) -> str:
        """The text of a file, without the blanks and line feeds around it."""
        return self._raw(path).strip(_AROUND)

    def lines(self, path: str) -> list[str]:
        """Return the lines of a file as they are.

        Of the kernel's files a line feed alone ends a line: it lets a name hold whatever else
        ``str.splitlines()`` takes for an end, and ends or begins one with a blank.
        """
        text = self._raw(path)
        return text.removesuffix("\n").split("\n") if text else []

    def _raw(self, path: str) -> str:
        descriptor = os.open(self._plain(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, 65_536)
            if len(data) >= 4_096:  # a sysfs file is at most a page; procfs goes on
                parts = [data]
                while parts[-1] and sum(map(len, parts)) < MAX_READ:
                    parts.append(os.read(descriptor, 65_536))
                data = b"".join(parts)
        finally:
            os.close(descriptor)
        return data.decode("utf-8", "surrogateescape")

    def administrators(self, path: str) -> str | None:
        """The text of a file that nobody but the administrator can change; None when there is none.

        Raises ``IsolationError`` for a link and whatever else is no file, and where another user
        owns the file or its directory or may write there.
        """
        above, _, name = path.rpartition("/")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            directory = os.open(self.at(above, is_followed=False), flags | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IsolationError(f"/{above}: {error.strerror}: expected a directory") from error
        try:
            if not self.is_real:
                self._plain(path, is_followed=False)
            descriptor = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            os.close(directory)
            return None
        except OSError as error:
            os.close(directory)
            raise IsolationError(f"/{path}: {error.strerror}: expected a file, no link") from error
        try:
            _check_administrators(above, os.fstat(directory))
            status = os.fstat(descriptor)
            _check_administrators(path, status)
            if not stat.S_ISREG(status.st_mode):
                raise IsolationError(f"/{path}: found no regular file, expected one")
            data = os.read(descriptor, MAX_CONFIGURED)
        finally:
            os.close(descriptor)
            os.close(directory)
        if len(data) >= MAX_CONFIGURED:
            raise IsolationError(f"/{path}: found {len(data)} bytes or more, expected fewer")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise IsolationError(f"/{path}: {error.reason}, expected UTF-8") from error

    def hold(self, path: str) -> str:
        """Read a short file that may have to be written, and keep it open until ``let_go``.

        To write it and to read it back is then one system call each, where a host has thousands of
        such files. ``pread`` leaves the position where ``write`` needs it: sysctls ignore what is
        written anywhere but at the start (``sysctl_writes_strict``, admin-guide/sysctl/kernel.rst).
        """
        try:
            descriptor = os.open(self._plain(path, is_followed=False), _TO_HOLD)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self.let_go()
            elif error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return self.read(path)
        data = os.pread(descriptor, 4_096, 0)
        if path in self._held or len(data) >= 4_096:
            os.close(descriptor)
            return self.read(path)
        self._held[path] = descriptor, len(data)
        return data.decode("utf-8", "surrogateescape").strip(_AROUND)

    def let_go(self) -> None:
        """Close the files that ``hold`` has kept open."""
        for descriptor, _ in self._held.values():
            os.close(descriptor)
        for descriptor in self._written.values():
            os.close(descriptor)
        self._held.clear()
        self._written.clear()

    def read_back(self, path: str) -> str:
        """What a file holds after a write; reading from the start asks the kernel anew.

        ``seq_read_iter()``, fs/seq_file.c, which procfs and sysfs are made with.
        """
        descriptor = self._written.pop(path, -1)
        if descriptor < 0:
            return self.read(path)
        try:
            return os.pread(descriptor, 4_096, 0).decode("utf-8", "surrogateescape").strip(_AROUND)
        finally:
            os.close(descriptor)

    def write(self, path: str, text: str) -> None:
        """Write a whole text with one system call, as sysfs needs it.

        Raises ``OSError``; a short write is ``ENOSPC``'s kin and raises, too.
        """
        data = (text + "\n").encode()
        if path in self._held:
            descriptor, before = self._held.pop(path)
            self._written[path] = descriptor  # its position is at the end: it is not written again
        else:
            descriptor = os.open(self._plain(path, is_followed=False), _TO_WRITE)
            before = 0 if self.is_real else os.fstat(descriptor).st_size
        if self.root != "/":  # a plain file would keep its tail; still one system call
            data = data.ljust(before, b"\n")
        try:
            written = os.write(descriptor, data)
        finally:
            if self._written.get(path) != descriptor:
                os.close(descriptor)
        if written != len(data):
            raise OSError(errno.EIO, f"short write: {written} of {len(data)} bytes", path)

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; nothing when there is no such directory."""
        try:
            return sorted(os.listdir(self.at(path)))  # noqa: PTH208 -- as in __init__
        except (FileNotFoundError, NotADirectoryError):
            return []

    def directories(self, path: str) -> list[str]:
        """The directories directly below one, sorted; links are none."""
        try:
            with os.scandir(self.at(path)) as entries:
                return sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def inodes(self, path: str) -> dict[str, int]:
        """What a directory holds, by name, each with its inode."""
        try:
            with os.scandir(self.at(path)) as entries:
                return {one.name: one.inode() for one in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def crowded(self, path: str, names: Iterable[str]) -> set[str]:
        """Which of these directories are known to hold others, from the links to them alone.

        They hold the same files, and procfs counts these as well: the least is that of none.
        """
        links: dict[str, int] = {}
        for name in names:
            try:
                links[name] = os.stat(self.at(f"{path}/{name}")).st_nlink  # noqa: PTH116 -- as above
            except OSError:  # it has gone, or never was
                continue
        least = min(links.values(), default=0)
        return {name for name, count in links.items() if count > least}

    def kernel(self) -> tuple[int, int]:
        """The first two numbers of the kernel's release. Raises ``OSError``."""
        major, minor, *_ = (self.read("proc/sys/kernel/osrelease") + ".0.0").split(".")
        digits = "".join(digit for digit in minor if digit.isdecimal())
        return int(major), int(digits or 0)

    def has(self, path: str) -> bool:
        """Whether there is something of this name."""
        try:
            os.stat(self.at(path))  # noqa: PTH116 -- as in __init__
        except OSError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        """Make a directory, or a control group, if it is not there; what is above it must be."""
        try:
            os.mkdir(self.at(path, is_followed=False), 0o755)  # noqa: PTH102 -- as in __init__
        except FileExistsError:
            return

    def unlink(self, path: str) -> None:
        """Remove a file, or a link itself."""
        os.unlink(self.at(path, is_followed=False))  # noqa: PTH108 -- as in __init__

    def remove_empty(self, path: str) -> None:
        """Remove a directory if there is nothing in it."""
        try:
            os.rmdir(self.at(path, is_followed=False))  # noqa: PTH106 -- as in __init__
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise

    def block_device(self, device: str) -> str:
        """The kernel's name of a disk (``sdb``) from any of its paths; empty when there is none."""
        try:
            path = self.at(device.lstrip("/"))
        except OSError:
            return ""
        name = (os.path.realpath(path) if self.is_real else path).rsplit("/", 1)[-1]
        return name if name and self.has(f"sys/class/block/{name}/queue") else ""

    def affinity(self, tid: int) -> CpuSet:
        """The CPUs on which a task may run (``sched_getaffinity(2)``)."""
        if self.is_real:
            return CpuSet(os.sched_getaffinity(tid))
        for line in self.read(f"proc/{tid}/status").split("\n"):
            if line.startswith(_AFFINITY):
                return CpuSet.parse(line.removeprefix(_AFFINITY))
        raise ProcessLookupError(errno.ESRCH, "no such task", str(tid))

    def set_affinity(self, tid: int, cpus: CpuSet) -> None:
        """Let a task run on ``cpus`` only (``sched_setaffinity(2)``)."""
        if self.is_real:
            os.sched_setaffinity(tid, cpus)
            return
        lines = self.read(f"proc/{tid}/status").split("\n")
        kept = [line for line in lines if not line.startswith(_AFFINITY)]
        self.write(f"proc/{tid}/status", "\n".join([*kept, f"{_AFFINITY}{cpus}"]))

    def scheduling(self, tid: int, what: str) -> str:
        """How a thread is scheduled: ``what`` and its values are those of ``scheduling.py``.

        In a tree a line of ``proc/TID/sched`` tells, or it is what untouched threads have.
        """
        from kvmhooks.isolate import scheduling  # noqa: PLC0415 -- few VMs ask for it

        if self.is_real:
            return scheduling.read(tid, what)
        self.read(f"proc/{tid}/stat")
        return self._schedule_of(tid).get(what, scheduling.DEFAULTS[what])

    def set_scheduling(self, tid: int, what: str, value: str) -> None:
        """Schedule a thread otherwise."""
        from kvmhooks.isolate import scheduling  # noqa: PLC0415 -- as above

        if self.is_real:
            scheduling.write(tid, what, value)
            return
        lines = self._schedule_of(tid) | {what: value}
        self.replace(f"proc/{tid}/sched", "".join(f"{k} {v}\n" for k, v in lines.items()))

    def _schedule_of(self, tid: int) -> dict[str, str]:
        try:
            lines = self.lines(f"proc/{tid}/sched")
        except FileNotFoundError:
            return {}
        return dict(line.split(" ", 1) for line in lines)

    def replace(self, path: str, text: str) -> None:
        """Make a file of a tree, or write it anew; nothing on a machine is made so."""
        with open(self._plain(path), "w", encoding="utf-8") as file:  # noqa: PTH123 -- as in __init__
            file.write(text)

    def is_socket(self, path: str) -> bool:
        """Whether a file is a socket."""
        try:
            return stat.S_ISSOCK(os.lstat(self.at(path, is_followed=False)).st_mode)
        except OSError:
            return False

    def ask(self, path: str, text: str, timeout: float) -> str:
        """Send a text to a stream socket and return all that comes back until it closes."""
        import socket  # noqa: PLC0415 -- 3 ms that most calls do not need

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout)
            peer.connect(self.at(path))
            peer.sendall(text.encode())
            parts: list[bytes] = []
            while sum(map(len, parts)) < MAX_READ:
                part = peer.recv(65_536)
                if not part:
                    break
                parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def systemd(self, timeout: float = 5.0) -> Systemd | None:
        """Systemd's manager over the system bus, or None where systemd does not run.

        Whether it does is told as by ``sd_booted(3)``.
        """
        if not self.has("run/systemd/system"):
            return None
        try:
            path = self.at("run/dbus/system_bus_socket")
        except OSError:  # in a tree, the links go round in a circle
            return None
        from kvmhooks.isolate.bus import Systemd  # noqa: PLC0415 -- many hosts need no bus

        return Systemd(path, timeout)

    def detach(self, words: list[str]) -> None:
        """Run a program that is nobody's child and has nothing of ours; it is not waited for."""
        from kvmhooks.isolate import children  # noqa: PLC0415 -- few calls start anything

        children.detach(words, lambda line: self.log(line, severity=4))

    def link(self, path: str) -> str:
        """What a link says; empty where there is none."""
        try:
            return os.readlink(self.at(path, is_followed=False))  # noqa: PTH115 -- as in __init__
        except OSError:
            return ""

    def write_within(self, seconds: float, path: str, text: str) -> None:
        """Write a text from a child, which is waited for no longer than this.

        Raises ``OSError`` as ``write`` does, and ``StuckError`` where the kernel does not return.
        """
        from kvmhooks.isolate import children  # noqa: PLC0415 -- as above

        children.within(seconds, lambda: self.write(path, text))

    def ask_program(self, words: list[str], seconds: float) -> str:
        """What a program prints within a time. Raises ``IsolationError`` with what is wrong."""
        from kvmhooks.isolate import children  # noqa: PLC0415 -- as above

        return children.output(words, seconds)

    def load(self, module: str, seconds: float) -> None:
        """Have the kernel load a module, if it can; whether it did is for the caller to see."""
        if self.is_real:
            from kvmhooks.isolate import children  # noqa: PLC0415 -- as above

            children.run(["/sbin/modprobe", "--", module], seconds)

    def log(self, line: str, severity: int = 6) -> None:
        """Send a line to the system's log (``/dev/log``); where nobody listens it is lost."""
        if not self.has("dev/log"):
            return
        import socket  # noqa: PLC0415 -- as in ask

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            try:
                peer.connect(self.at("dev/log"))
                peer.send(
                    f"<{24 + severity}>kvmhooks[{os.getpid()}]: {line}".encode(
                        "utf-8", "backslashreplace"
                    )
                )
            except OSError:  # no log daemon is no reason to keep a VM from starting
                return

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.monotonic()

    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self.now() >= self.deadline

    def parent(self) -> int:
        """The process that runs us."""
        return os.getppid()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def _check_administrators(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise IsolationError(
            f"/{path}: found owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}, "
            f"expected owner {os.geteuid()}, and that nobody else may write it"
        )
