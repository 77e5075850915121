"""The hook put in its place, taken away again, and whether it would run.

libvirt from 6.5 runs every file of ``/etc/libvirt/hooks/qemu.d`` besides ``qemu``; before, there is
only ``qemu``, and a script that is there already is kept and called after ours
(https://libvirt.org/hooks.html). Where AppArmor confines libvirtd, its profile lets hooks run from
``/etc/libvirt/hooks`` and programs of the system's own directories only; SELinux labels what is
made there ``virt_hook_t`` or ``etc_t`` by its policy's own rules (``restorecon``).
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.hook.bundle import build, digest, digest_of, version_of
from kvmhooks.version import VERSION

HOOKS: Final = "etc/libvirt/hooks"
DROP_IN: Final = f"{HOOKS}/qemu.d/kvmhooks"
SINGLE: Final = f"{HOOKS}/qemu"
BEFORE: Final = f"{HOOKS}/qemu.before-kvmhooks"
UNIT: Final = "etc/systemd/system/kvmhooks-reconcile.service"
WANTED_BY: Final = ("multi-user.target", "irqbalance.service")
DROP_INS_SINCE: Final = (6, 5)
_HEAD: Final = 4_096
DAEMONS: Final = ("virtqemud", "libvirtd")
NOBODY: Final = "neither virtqemud nor libvirtd is installed: there is nobody to hook into"
PACKAGED: Final = ("usr/lib/systemd/system", "lib/systemd/system")
"""The directory of packages' units; before Debian 13 ``/lib`` need not be ``/usr/lib``."""

_FOLDERS: Final = "# Made with it: "
"""The third line of the hook's file names the directories that go with it, if they are empty."""

UNIT_MADE: Final = "# Made by `kvmhooks hooks install`.\n"

_UNIT_TEXT: Final = """\
[Unit]
Description=Give back what stopped VMs have left on this host
After=local-fs.target irqbalance.service
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
Type=oneshot
ExecStartPre=/usr/bin/sleep 1
ExecStart={command}
Restart=on-failure
RestartSec=15

[Install]
WantedBy={wanted_by}
"""
"""It also runs whenever irqbalance starts, since a new one knows nothing of our bans (openshift
NTO#396): once that listens, and before it first places interrupts, after ten seconds."""


class InstalledHook(NamedTuple):
    """The hook that is there, and whether it would run."""

    path: str
    """The hook's path, with a leading slash; empty when it is nowhere."""
    version: str
    chained: bool
    """A script that was there before is called after ours."""
    unit: bool
    problems: tuple[str, ...]
    """The obstacles to its running, each with what to do."""


def install(
    root: str = "/",
    interpreter: str = "/usr/bin/python3",
    libvirt: tuple[int, ...] | None = None,
    planner: Sequence[str] | None = None,
) -> InstalledHook:
    """Put the hook where this libvirt looks for it, with its unit for `reconcile`.

    ``planner`` are the words that run `kvmhooks`, for new pins at a migration: this interpreter and
    this package, where nobody but root can change them.

    Installing again replaces our own file. Raises ``IsolationError`` or ``OSError``.
    """
    check_steps(Path(root), _ours(Path(root)))
    top = _top(root)
    version = libvirt_version(root) if libvirt is None else libvirt
    path = top / (DROP_IN if version >= DROP_INS_SINCE else SINGLE)
    is_single = path == top / SINGLE
    is_taken = is_single and path.exists() and not _is_ours(path)
    chained = ""
    if is_single and (is_taken or (top / BEFORE).exists()):
        chained = f"/{BEFORE}" if root == "/" else str(top / BEFORE)
    folders = _made_with(path) or _absent(top, path, *_links(top))
    text = build(interpreter, chained, trusted_planner() if planner is None else planner)
    if is_taken:
        os.replace(path, top / BEFORE)  # noqa: PTH105 -- one step, as it says
    first, second, rest = text.split("\n", 2)
    _write(path, f"{first}\n{second}\n{_FOLDERS}{' '.join(folders)}\n{rest}", 0o755)
    unit = _packaged_unit(top)
    if unit is None:
        unit = top / UNIT
        _write(unit, UNIT_MADE + reconcile_unit(f"/{path.relative_to(top)} --reconcile"), 0o644)
    elif _is_our_unit(top / UNIT):
        (top / UNIT).unlink()
    for link in _links(top):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{unit.relative_to(top)}")
    return status(root)


def uninstall(root: str = "/") -> None:
    """Take away what is ours, and put back what was in its place.

    The VMs' claims are not looked at: see ``kvmhooks.cli.hooks``. Raises ``IsolationError`` or
    ``OSError``.
    """
    check_steps(Path(root), _ours(Path(root)))
    top = _top(root)
    folders: set[str] = set()
    for name in (DROP_IN, SINGLE):
        path = top / name
        if _is_ours(path):
            folders.update(_made_with(path))
            path.unlink()
    if (top / BEFORE).exists() and not (top / SINGLE).exists():
        os.replace(top / BEFORE, top / SINGLE)  # noqa: PTH105 -- as above
    for link in _links(top):
        link.unlink(missing_ok=True)
    if _is_our_unit(top / UNIT):
        (top / UNIT).unlink()
    for name in sorted(folders, reverse=True):
        folder = top / name
        if _is_inside(top, folder) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def status(root: str = "/") -> InstalledHook:
    """Return the hook that is installed, and whether it would run."""
    top = _top(root)
    unit = top / UNIT if (top / UNIT).exists() else _packaged_unit(top)
    nobody = [] if _daemons(top) else [NOBODY]
    for name in (DROP_IN, SINGLE):
        path = top / name
        version = version_of(_text(path)) if path.is_file() else None
        if version is not None:
            return InstalledHook(
                path=f"/{name}",
                version=version,
                chained=name == SINGLE and (top / BEFORE).exists(),
                unit=unit is not None,
                problems=(*nobody, *_problems(path, version, top), *_problems_of_unit(unit, top)),
            )
    return InstalledHook("", "", chained=False, unit=False, problems=("not installed", *nobody))


def check_steps(top: Path, paths: Sequence[Path]) -> None:
    """Refuse a root in which what is written to ``paths`` could come elsewhere.

    Nothing between it and them may lead out of it, or, to root, be what another user can change.
    Raises ``IsolationError``. Of ``/`` itself nothing is asked.
    """
    real = Path(os.path.realpath(top))
    if real == Path("/"):
        return
    above = {folder for path in paths for folder in path.parents if folder.is_relative_to(top)}
    ends = {Path(os.path.realpath(folder)) for folder in above}
    within = {
        folder for end in ends for folder in (end, *end.parents) if folder.is_relative_to(real)
    }
    for step in sorted(above - {top}) + sorted(within):
        try:
            status = step.lstat()
        except FileNotFoundError:
            continue
        is_link = stat.S_ISLNK(status.st_mode)
        if is_link and not Path(os.path.realpath(step)).is_relative_to(real):
            found = os.readlink(step)  # noqa: PTH115 -- as it stands there
            raise IsolationError(f"{step}: found a link to {found}, which leads out of {top}")
        others = 0o002 if status.st_gid == 0 else 0o022
        if os.geteuid() == 0 and (status.st_uid != 0 or (not is_link and status.st_mode & others)):
            raise IsolationError(
                f"{step}: found user {status.st_uid}'s, mode {stat.S_IMODE(status.st_mode):o}, "
                "expected what only root can change"
            )


def trusted_planner() -> list[str]:
    """Return words that run this `kvmhooks`; none if others than root could change what runs."""
    package = Path(__file__).resolve().parents[2]
    places = [Path(sys.executable), Path(sys.executable).resolve(), package, package / "cli"]
    every = {above for place in places for above in (place, *place.parents)}
    if any(path.stat().st_uid != 0 or path.stat().st_mode & 0o022 for path in every):
        return []
    return [sys.executable, "-I", "-m", "kvmhooks.cli.main"]


def reload_daemons(root: str = "/") -> list[str]:
    """Have systemd read its units again and the running daemons look for hooks; return what remains
    to be done by hand.

    libvirt looks at its start and at SIGHUP; a restart is not needed. Raises nothing: the file is
    in its place either way.
    """
    left: list[str] = []
    if root != "/":  # nobody runs there
        return left
    if not Path("/run/systemd/system").exists():
        return [step for daemon in DAEMONS for step in _reload_by_signal(daemon)]
    if os.access("/usr/bin/systemctl", os.X_OK):
        done = subprocess.run(
            ["/usr/bin/systemctl", "daemon-reload"], check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            left.append("systemctl daemon-reload")
    for daemon in DAEMONS if os.access("/usr/bin/systemctl", os.X_OK) else ():
        done = subprocess.run(
            ["/usr/bin/systemctl", "is-active", "--quiet", daemon],
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            done = subprocess.run(
                ["/usr/bin/systemctl", "reload", daemon], check=False, stdin=subprocess.DEVNULL
            )
            if done.returncode != 0:
                left.append(f"systemctl reload {daemon}")
    return left


def _reload_by_signal(daemon: str) -> list[str]:
    """Send SIGHUP to a daemon by its pid file (libvirtd(8), «SIGNALS»); return what is left to do.

    One that does not run reads its hooks when it starts.
    """
    try:
        pid = int(Path(f"/run/{daemon}.pid").read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != daemon:
            return []
    except (OSError, ValueError):
        return []
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError:
        return [f"kill -HUP {pid}"]
    return []


def libvirt_version(root: str = "/") -> tuple[int, ...]:
    """Return the version of the daemon that is installed. Raises ``IsolationError`` without one.

    The programs of another root are not run: theirs is taken for one that has drop-ins, as every
    libvirt has that kvmhooks supports.
    """
    for path in _daemons(Path(root)):
        if root != "/":
            return DROP_INS_SINCE
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, check=False, timeout=10
        )
        found = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
        if found:
            return tuple(int(part) for part in found.groups())
    raise IsolationError(NOBODY)


def reconcile_unit(command: str) -> str:
    """Return the text of the unit that has ``command`` give back what is left."""
    return _UNIT_TEXT.format(command=command, wanted_by=" ".join(WANTED_BY))


def _top(root: str) -> Path:
    """Return the root as a path.

    Raises ``IsolationError`` where what is written or read below it would be elsewhere: a tree of
    files may have links to anywhere.
    """
    top = Path(root)
    written = (top / BEFORE, top / UNIT, *_links(top))
    for path in (top / DROP_IN, top / SINGLE, *(file.parent for file in written)):
        if not _is_inside(top, path):
            raise IsolationError(f"{path}: found a link, which leads out of {root}")
    return top


def _is_inside(top: Path, path: Path) -> bool:
    return top == Path("/") or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))


def _daemons(top: Path) -> list[Path]:
    """Return the daemons that call hooks, as far as they are installed: modular ones first."""
    places = [top / folder / name for name in DAEMONS for folder in ("usr/sbin", "usr/bin")]
    return [path for path in places if os.access(path, os.X_OK)]


def _packaged_unit(top: Path) -> Path | None:
    """Return the unit for ``reconcile`` that a package brought, if there is one."""
    paths = [top / folder / Path(UNIT).name for folder in PACKAGED]
    return next((path for path in paths if path.is_file()), None)


def _is_our_unit(path: Path) -> bool:
    return path.is_file() and _text(path).startswith(UNIT_MADE)


def _absent(top: Path, *paths: Path) -> list[str]:
    """Return the directories above ``paths`` that are missing below ``top``, outermost first."""
    above = {folder for path in paths for folder in path.parents if folder.is_relative_to(top)}
    return sorted(str(folder.relative_to(top)) for folder in above if not folder.exists())


def _ours(top: Path) -> list[Path]:
    """Return all that is written or removed below ``top``."""
    return [*(top / name for name in (DROP_IN, SINGLE, BEFORE, UNIT)), *_links(top)]


def _made_with(path: Path) -> list[str]:
    """Return the directories that were made with the hook's file; none where there is no such file.

    The tree's maker may have written the line: only our own directories are taken from it.
    """
    lines = _text(path).split("\n", 3) if path.is_file() else []
    if len(lines) < 3 or not lines[2].startswith(_FOLDERS):
        return []
    ours = (Path(DROP_IN), Path(SINGLE), *_links(Path()))
    possible = {str(above) for own in ours for above in own.parents}
    return [name for name in lines[2].removeprefix(_FOLDERS).split() if name in possible]


def _links(top: Path) -> list[Path]:
    """Return the links that have systemd start the unit, as `systemctl enable` makes them."""
    system = top / "etc/systemd/system"
    return [system / f"{name}.wants" / Path(UNIT).name for name in WANTED_BY]


def _problems_of_unit(unit: Path | None, top: Path) -> list[str]:
    """Return the obstacles to systemd's start of ``reconcile``."""
    if unit is None:
        return ["no unit starts `reconcile`: run `kvmhooks hooks install`"]
    target = f"/{unit.relative_to(top)}"
    if all(link.is_symlink() and os.readlink(link) == target for link in _links(top)):  # noqa: PTH115
        return []
    return [f"{unit}: nothing starts it: run `kvmhooks hooks install`"]


def _problems(path: Path, version: str, top: Path) -> list[str]:
    found = []
    status = path.stat()
    if version != VERSION:
        found.append(f"version {version}, expected {VERSION}: run `kvmhooks hooks install`")
    elif digest_of(_text(path)) != digest():
        found.append(f"another build of {VERSION} than this one: run `kvmhooks hooks install`")
    if status.st_uid != top.stat().st_uid or stat.S_IMODE(status.st_mode) & 0o022:
        found.append(f"{path}: others than root may write it: run `kvmhooks hooks install`")
    if not status.st_mode & stat.S_IXUSR:
        found.append(f"{path}: not executable: run `chmod 755 {path}`")
    interpreter = _text(path).split("\n", 1)[0].removeprefix("#!").split(" ")[0]
    if not os.access(interpreter, os.X_OK):
        found.append(f"{interpreter}: no such interpreter: run `kvmhooks hooks install`")
    if (top / "etc/kvmhooks/disabled").exists():
        found.append("/etc/kvmhooks/disabled exists: the hook does nothing")
    return found


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one step, so that libvirt never runs half of one.

    Raises ``OSError``, which names the file; nothing is left beside it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        os.replace(new, path)  # noqa: PTH105 -- one step, as it says
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_ours(path: Path) -> bool:
    return path.is_file() and version_of(_text(path)) is not None


def _text(path: Path) -> str:
    """Return the first lines of a file, in which all stands that is asked for."""
    with path.open(errors="replace") as file:
        return file.read(_HEAD)
