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
from kvmhooks.isolate.bundle import build, version_of
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

_UNIT_TEXT: Final = """\
# Made by `kvmhooks hooks install`.
[Unit]
Description=Give back what stopped VMs have left on this host
After=local-fs.target irqbalance.service
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
Type=oneshot
ExecStartPre=/usr/bin/sleep 1
ExecStart={hook} --reconcile
Restart=on-failure
RestartSec=15

[Install]
WantedBy={wanted_by}
"""
"""It also runs whenever irqbalance starts, since a new one knows nothing of our bans (openshift
NTO#396): once that listens, and before it first places interrupts, after ten seconds."""


class Installed(NamedTuple):
    """What is there, and whether it would run."""

    path: str
    """Where the hook is, with a leading slash; empty when it is nowhere."""
    version: str
    chained: bool
    """Whether a script that was there before is called after ours."""
    unit: bool
    problems: tuple[str, ...]
    """What keeps it from running, each with what to do."""


def install(
    root: str = "/",
    interpreter: str = "/usr/bin/python3",
    libvirt: tuple[int, ...] | None = None,
    planner: Sequence[str] | None = None,
) -> Installed:
    """Put the hook where this libvirt looks for it, with its unit for `reconcile`.

    ``planner`` are the words that run `kvmhooks`, for new pins at a migration: this interpreter and
    this package, where nobody but root can change them.

    Installing again replaces our own file. Raises ``IsolationError`` or ``OSError``.
    """
    top = Path(root)
    version = libvirt_version() if libvirt is None else libvirt
    path = top / (DROP_IN if version >= DROP_INS_SINCE else SINGLE)
    chained = ""
    if path == top / SINGLE and path.exists() and not _is_ours(path):
        os.replace(path, top / BEFORE)  # noqa: PTH105 -- one step, as it says
    if path == top / SINGLE and (top / BEFORE).exists():
        chained = f"/{BEFORE}" if root == "/" else str(top / BEFORE)
    _write(
        path, build(interpreter, chained, trusted_planner() if planner is None else planner), 0o755
    )
    text = _UNIT_TEXT.format(hook=f"/{path.relative_to(top)}", wanted_by=" ".join(WANTED_BY))
    _write(top / UNIT, text, 0o644)
    for link in _links(top):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{UNIT}")
    return status(root)


def uninstall(root: str = "/") -> None:
    """Take away what is ours, and put back what was in its place. Raises ``OSError``."""
    top = Path(root)
    for name in (DROP_IN, SINGLE):
        path = top / name
        if _is_ours(path):
            path.unlink()
    if (top / BEFORE).exists() and not (top / SINGLE).exists():
        os.replace(top / BEFORE, top / SINGLE)  # noqa: PTH105 -- as above
    for link in _links(top):
        link.unlink(missing_ok=True)
    (top / UNIT).unlink(missing_ok=True)


def status(root: str = "/") -> Installed:
    """What is installed and whether it would run."""
    top = Path(root)
    for name in (DROP_IN, SINGLE):
        path = top / name
        version = version_of(_text(path)) if path.is_file() else None
        if version is not None:
            return Installed(
                path=f"/{name}",
                version=version,
                chained=name == SINGLE and (top / BEFORE).exists(),
                unit=(top / UNIT).exists(),
                problems=tuple(_problems(path, version, top)),
            )
    return Installed("", "", chained=False, unit=False, problems=("not installed",))


def trusted_planner() -> list[str]:
    """Words that run this `kvmhooks`; none where somebody else than root could change what runs."""
    package = Path(__file__).resolve().parents[1]
    places = [Path(sys.executable), Path(sys.executable).resolve(), package, package / "cli"]
    every = {above for place in places for above in (place, *place.parents)}
    if any(one.stat().st_uid != 0 or one.stat().st_mode & 0o022 for one in every):
        return []
    return [sys.executable, "-I", "-m", "kvmhooks.cli.main"]


def reload_daemons(root: str = "/") -> list[str]:
    """Have systemd read its units again and the running daemons look for hooks; return what remains
    to be done by hand.

    libvirt looks at its start and at SIGHUP; a restart is not needed. Raises nothing: the file is
    in its place either way.
    """
    if root != "/":
        return ["systemctl reload libvirtd"]
    left = []
    if not Path("/run/systemd/system").exists():
        return [] if any(map(_reload_by_signal, DAEMONS)) else ["kill -HUP $(pidof libvirtd)"]
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


def _reload_by_signal(daemon: str) -> bool:
    """Send SIGHUP to a daemon by its pid file; whether it is there (libvirtd(8), «SIGNALS»)."""
    try:
        pid = int(Path(f"/run/{daemon}.pid").read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != daemon:
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True


def libvirt_version() -> tuple[int, ...]:
    """The version of the daemon that is installed. Raises ``IsolationError`` without one."""
    for daemon in DAEMONS:
        for directory in ("/usr/sbin", "/usr/bin"):
            if not os.access(f"{directory}/{daemon}", os.X_OK):
                continue
            done = subprocess.run(
                [f"{directory}/{daemon}", "--version"],
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
            found = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
            if found:
                return tuple(int(part) for part in found.groups())
    raise IsolationError(
        "neither virtqemud nor libvirtd is installed: there is nobody to hook into"
    )


def _links(top: Path) -> list[Path]:
    """What has systemd start the unit, as `systemctl enable` would make it."""
    system = top / "etc/systemd/system"
    return [system / f"{name}.wants" / Path(UNIT).name for name in WANTED_BY]


def _problems(path: Path, version: str, top: Path) -> list[str]:
    found = []
    said = path.stat()
    if version != VERSION:
        found.append(f"version {version}, expected {VERSION}: run `kvmhooks hooks install`")
    if said.st_uid != top.stat().st_uid or stat.S_IMODE(said.st_mode) & 0o022:
        found.append(f"{path}: others than root may write it: run `kvmhooks hooks install`")
    if not said.st_mode & stat.S_IXUSR:
        found.append(f"{path}: not executable: run `chmod 755 {path}`")
    interpreter = _text(path).split("\n", 1)[0].removeprefix("#!").split(" ")[0]
    if not os.access(interpreter, os.X_OK):
        found.append(f"{interpreter}: no such interpreter: run `kvmhooks hooks install`")
    if (top / "etc/kvmhooks/disabled").exists():
        found.append("/etc/kvmhooks/disabled exists: the hook does nothing")
    return found


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one step, so that libvirt never runs half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(descriptor, mode)
    os.replace(new, path)  # noqa: PTH105 -- one step, as it says


def _is_ours(path: Path) -> bool:
    return path.is_file() and version_of(_text(path)) is not None


def _text(path: Path) -> str:
    """Return the first lines of a file, in which all stands that is asked for."""
    with path.open(errors="replace") as file:
        return file.read(_HEAD)
