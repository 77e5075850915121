"""The units of systemd with which VMs of kvm-launch are services: ``kvm-launch@NAME.service``.

systemd.service(5), systemd.unit(5) («Specifiers»: ``%E`` is ``/etc`` for the system's manager and
``~/.config`` for a user's), sd_notify(3).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvmhooks.errors import LaunchError

NAME: Final = "kvm-launch@.service"
RECONCILE: Final = "kvmhooks-reconcile.service"
SYSTEM: Final = "etc/systemd/system"

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
"""What root's kvm-launch, its QEMUs and helpers keep of capabilities(7), and what for: the system's
unit takes the others away (``CapabilityBoundingSet``, systemd.exec(5)). A user has none to lose."""

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

_RECONCILE: Final = """\
[Unit]
Description=Give back what stopped VMs have left on this host
After=local-fs.target
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
Type=oneshot
ExecStart={program} reconcile
Restart=on-failure
RestartSec=15

[Install]
WantedBy=multi-user.target
"""


def install(directory: Path, programs: Path, *, is_user: bool = False) -> list[Path]:
    """Write the units into ``directory``, for the programs in ``programs``; give their paths.

    The unit for ``reconcile`` is left alone where the hook's installation has made one. Raises
    ``LaunchError`` for a program that is not there or a unit that is none of ours, and ``OSError``.
    """
    for name in ("kvm-launch", "kvmhooks"):
        if not os.access(programs / name, os.X_OK):
            raise LaunchError(f"{programs / name}: found nothing, expected a program to be run")
    texts = {
        NAME: _UNIT.format(
            program=programs / "kvm-launch",
            after="basic.target"
            if is_user
            else f"network-online.target local-fs.target {RECONCILE}",
            limits="" if is_user else _ROOTS,
            wanted="default.target" if is_user else "multi-user.target",
        )
    }
    if not is_user and not (directory / RECONCILE).exists():
        texts[RECONCILE] = _RECONCILE.format(program=programs / "kvmhooks")
    for name in texts:
        if (directory / name).exists() and not _is_ours(directory / name):
            raise LaunchError(f"{directory / name}: found a unit that is not ours, expected none")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write(directory / name, _MADE + text)
    return [directory / name for name in texts]


def remove(directory: Path) -> list[Path]:
    """Remove what ``install`` has made, and give the paths. Raises ``OSError``."""
    ours = [directory / name for name in (NAME, RECONCILE) if _is_ours(directory / name)]
    for path in ours:
        path.unlink()
    return ours


def user_directory() -> Path:
    """Where a user's own units are (systemd.unit(5))."""
    said = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(said) if said.startswith("/") else Path.home() / ".config"
    return base / "systemd/user"


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
