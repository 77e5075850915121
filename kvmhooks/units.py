"""The units of systemd with which VMs of kvm-launch are services: ``kvm-launch@NAME.service``.

systemd.service(5), systemd.unit(5) («Specifiers»: ``%E`` is ``/etc`` for the system's manager and
``~/.config`` for a user's), sd_notify(3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kvmhooks.errors import LaunchError
from kvmhooks.isolate.hook.installation import reconcile_unit

NAME: Final = "kvm-launch@.service"
RECONCILE: Final = "kvmhooks-reconcile.service"
SYSTEM: Final = "etc/systemd/system"
PACKAGED: Final = {False: "usr/lib/systemd/system", True: "usr/lib/systemd/user"}
"""The directories for packages' units, the system's and (True) users': what is in ``/etc`` or
``~/.config`` hides them (systemd.unit(5), «Unit File Load Path»).
"""

CAPABILITIES: Final = {
    "CAP_CHOWN": "images and a TPM's state are QEMU's user's",
    "CAP_DAC_OVERRIDE": "files of the host's, and of whoever a shared folder's are",
    "CAP_DAC_READ_SEARCH": "as above; virtiofsd opens files by their handles",
    "CAP_FOWNER": "virtiofsd sets modes and times of others' files",
    "CAP_FSETID": "virtiofsd keeps set-group-id bits",
    "CAP_IPC_LOCK": "QEMU locks the guest's memory, or pins it for devices",
    "CAP_KILL": "QEMU is another user's",
    "CAP_MKNOD": "a guest makes devices in a shared folder; a macvtap's device",
    "CAP_NET_ADMIN": "taps, and the settings of virtual functions",
    "CAP_NET_BIND_SERVICE": "a helper may listen at a low port",
    "CAP_SETFCAP": "virtiofsd sets capabilities of files",
    "CAP_SETGID": "QEMU and helpers become other users",
    "CAP_SETPCAP": "virtiofsd and passt give up the rest of these",
    "CAP_SETUID": "QEMU and helpers become other users",
    "CAP_SYS_ADMIN": "control groups, namespaces, resctrl",
    "CAP_SYS_CHROOT": "virtiofsd and passt see nothing else of the host",
    "CAP_SYS_MODULE": "vfio-pci is loaded for a VM's devices",
    "CAP_SYS_NICE": "affinity, scheduling classes and memory nodes of threads",
    "CAP_SYS_PTRACE": "core-scheduling cookies of another user's threads",
    "CAP_SYS_RESOURCE": "limits of locked memory and open files",
}
"""The capabilities(7) that root's kvm-launch, its QEMUs and helpers keep, and what for: the
system's unit takes the others away (``CapabilityBoundingSet``, systemd.exec(5)). A user has none to
lose.
"""

_MADE: Final = "# Made by `kvmhooks install-units`.\n"

_UNIT: Final = """\
[Unit]
Description=Virtual machine %i
After={after}
AssertPathExists=%E/kvm-launch/%i.toml

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} %E/kvm-launch/%i.toml
ExecReload={program} reload --pid $MAINPID
KillMode=mixed
TimeoutStartSec=10min
Restart=on-abnormal
RestartSec=5
LimitNOFILE=1048576
{limits}TasksMax=infinity

[Install]
WantedBy={wanted}
"""
"""kvm-launch alone gets SIGTERM: it presses the guest's power button, and asks for as much time as
its VM may take. It starts the VM again itself (``run.restart``); systemd starts kvm-launch again
when that was killed."""

_ROOTS: Final = f"""\
LimitMEMLOCK=infinity
CapabilityBoundingSet={" ".join(CAPABILITIES)}
LockPersonality=yes
"""

_EXEC: Final = re.compile(r"^ExecStart=(\S+)", re.MULTILINE)


class InstalledUnits(NamedTuple):
    """The units that were written, and those of a package, which serve as they are."""

    made: list[Path]
    packaged: list[Path]


def texts(programs: Path, *, is_user: bool) -> Mapping[str, str]:
    """Return the text of each unit by its name, for the programs in ``programs``."""
    launch = _UNIT.format(
        program=programs / "kvm-launch",
        after="basic.target" if is_user else f"network-online.target local-fs.target {RECONCILE}",
        limits="" if is_user else _ROOTS,
        wanted="default.target" if is_user else "multi-user.target",
    )
    if is_user:
        return {NAME: launch}
    return {NAME: launch, RECONCILE: reconcile_unit(f"{programs / 'kvmhooks'} reconcile")}


def install(
    directory: Path, programs: Path, *, is_user: bool = False, packaged: Path | None = None
) -> InstalledUnits:
    """Write the units into ``directory``, for the programs in ``programs``.

    A unit that a package has in ``packaged`` serves as it is, if it starts the same program; one
    of ours that would hide it is removed. A unit for ``reconcile`` that is not ours is left alone:
    the hook's installation makes one. Raises ``OSError``, and ``LaunchError`` for a program that
    is not there, a unit that is none of ours, or a package's unit of another kvm-launch.
    """
    for name in ("kvm-launch", "kvmhooks"):
        if not os.access(programs / name, os.X_OK):
            raise LaunchError(f"{programs / name}: found nothing, expected a program to be run")
    units = texts(programs, is_user=is_user)
    theirs = [packaged / name for name in units if packaged and (packaged / name).is_file()]
    for path in theirs:
        _check_same(path, units[path.name], directory)
    foreign = [
        name for name in units if (directory / name).exists() and not _is_ours(directory / name)
    ]
    if NAME in foreign:
        raise LaunchError(f"{directory / NAME}: found a unit that is not ours, expected none")
    for path in theirs:
        if path.name not in foreign:
            (directory / path.name).unlink(missing_ok=True)
    wanted = units.keys() - {path.name for path in theirs} - set(foreign)
    made = [directory / name for name in units if name in wanted]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, _MADE + units[path.name])
    return InstalledUnits(made, theirs)


def package(root: Path, programs: Path) -> list[Path]:
    """Write all units below ``root`` where a package has them; return their paths.

    ``programs`` is where the programs will be. Raises ``OSError``.
    """
    made = []
    for is_user, place in PACKAGED.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for name, text in texts(programs, is_user=is_user).items():
            _write(root / place / name, text)
            made.append(root / place / name)
    return made


def remove(directory: Path) -> list[Path]:
    """Remove what ``install`` has made, and return the paths. Raises ``OSError``."""
    ours = [directory / name for name in (NAME, RECONCILE) if _is_ours(directory / name)]
    for path in ours:
        path.unlink()
    return ours


def user_directory() -> Path:
    """Return where a user's own units are (systemd.unit(5))."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".config"
    return base / "systemd/user"


def _check_same(path: Path, ours: str, directory: Path) -> None:
    """Raise ``LaunchError`` where a package's unit starts another program than ours would."""
    found, expected = _EXEC.findall(path.read_text()), _EXEC.findall(ours)
    if found != expected:
        raise LaunchError(
            f"{path}: found a package's unit, which starts {' '.join(found) or 'nothing'}, "
            f"expected {' '.join(expected)}: a unit in {directory} would hide it; remove that "
            "package, or use its kvm-launch"
        )


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8", errors="replace").startswith(_MADE)
    except FileNotFoundError:
        return False


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with new.open("x", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
    new.replace(path)
