"""The lab's root file system: Debian as installed, made ready for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import debian
from .command import run

GUEST = Path(__file__).parent / "guest"

PACKAGES = (
    # the system
    "systemd systemd-sysv dbus udev kmod iproute2 procps psmisc util-linux busybox-static"
    # what a server of this kind runs
    " libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu systemd-container"
    " qemu-system-x86 qemu-utils ovmf swtpm irqbalance"
    # what kvmhooks runs on
    " python3 python3-libvirt python3-yaml"
    # what tests ask and load it with
    " hwloc-nox numactl pciutils ethtool nvme-cli stress-ng strace"
).split()

MORE_PACKAGES = {debian.TRIXIE: ("virtiofsd",), debian.SID: ("virtiofsd",)}
"""A part of another package in bookworm: qemu-system-common had virtiofsd."""

MASKED = (
    # run by the clock: they would come and go between two snapshots
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer"
    " e2scrub_reap.service fstrim.timer logrotate.timer systemd-tmpfiles-clean.timer"
    " systemd-timesyncd.service"
    # started only where a variant asks for it
    " irqbalance.service"
    # cost boot time and serve nothing here
    " getty@tty1.service ldconfig.service libvirt-guests.service libvirtd-tls.socket"
    " nvmefc-boot-connections.service nvmf-autoconnect.service"
    " systemd-journal-catalog-update.service systemd-pstore.service systemd-rfkill.service"
    " systemd-rfkill.socket systemd-update-utmp.service virtlogd-admin.socket"
).split()

FILES = {
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/fstab": "/dev/vda / ext4 noatime 0 0\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\n",
    # without this libvirtd leaves after 120 idle seconds
    "etc/default/libvirtd": 'LIBVIRTD_ARGS=""\n',
}

QEMU_CONF = """
user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
namespaces = []
stdio_handler = "file"
"""

UNUSED_MODULES = (
    "sound drivers/gpu drivers/media drivers/staging drivers/isdn drivers/infiniband drivers/iio"
    " drivers/hwmon drivers/mtd drivers/ata drivers/usb drivers/comedi drivers/bluetooth"
    " drivers/video drivers/net/wireless drivers/net/usb drivers/net/can drivers/net/wwan"
    " drivers/net/fddi drivers/net/hamradio drivers/net/ieee802154 drivers/net/phy fs/ocfs2"
    " fs/gfs2 fs/xfs fs/btrfs fs/f2fs fs/jfs fs/reiserfs fs/nilfs2 fs/ceph fs/afs fs/cifs fs/smb"
    " fs/coda fs/dlm fs/ubifs fs/jffs2 fs/bcachefs net/bluetooth net/wireless net/mac80211 net/can"
    " net/nfc net/ieee802154 net/batman-adv net/rxrpc net/tipc net/sctp net/dccp"
).split()
"""Left out of the image for its size."""


def make(root: Path, release: str) -> None:
    """Install a release of Debian into this directory and configure it."""
    _install(root, release)
    _configure(root)


def add_kernel(root: Path, suite: str, into: Path) -> str:
    """Put a kernel's modules into the root and its image into ``into``; its version comes back.

    Kernels of sid have everything below ``/usr/lib/modules/VERSION``, older ones use ``/boot``.
    """
    unpacked = into / f"kernel-{suite}.unpacked"
    debian.unpack(debian.kernel_packages(suite), suite, unpacked)
    (found,) = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
    version, boot = found.name, unpacked / "boot"
    image, config = boot / f"vmlinuz-{version}", boot / f"config-{version}"
    if not image.exists():
        image, config = found / "vmlinuz", found / "config"
    shutil.copy(image, into / f"vmlinuz-{suite}")
    shutil.copy(config, root / "boot" / f"config-{version}")
    modules = root / "lib" / "modules" / version
    shutil.copytree(found, modules, symlinks=True)
    shutil.rmtree(unpacked)
    for unused in UNUSED_MODULES:
        if (modules / "kernel" / unused).exists():
            shutil.rmtree(modules / "kernel" / unused)
    run(["chroot", root, "depmod", version])
    return version


def python_of(root: Path) -> str:
    """Return the version of Debian's Python below this root, such as 3.11."""
    return (root / "usr" / "bin" / "python3").readlink().name.removeprefix("python")


def _install(root: Path, release: str) -> None:
    apt = [f"--aptopt={line}" for line in debian.proxy_options()]
    unread = ("man", "doc", "locale", "info")
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            *apt,
            '--aptopt=APT::Install-Recommends "0"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unread),
            f"--include={','.join([*PACKAGES, *MORE_PACKAGES.get(release, ())])}",
            release,
            root,
            "-",
        ],
        stdin="\n".join(debian.sources().lines(release)) + "\n",
        seconds=1800,
    )


def _configure(root: Path) -> None:
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = root / "etc" / "systemd" / "system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    shadow = root / "etc" / "shadow"
    shadow.write_text(shadow.read_text().replace("root:*:", "root::", 1))
    with open(root / "etc" / "libvirt" / "qemu.conf", "a") as file:
        file.write(QEMU_CONF)
    for network in (root / "etc/libvirt/qemu/networks/autostart").glob("*.xml"):
        network.unlink()
    (root / "etc" / "libvirt" / "hooks").mkdir(exist_ok=True)
    for program in ("lab-net", "lab-init", "agent.py"):
        target = root / "usr/local/sbin" / ("lab-agent" if program == "agent.py" else program)
        shutil.copy(GUEST / program, target)
        target.chmod(0o755)
    shutil.copy(GUEST / "lab-agent.service", units)
    wants = units / "multi-user.target.wants" / "lab-agent.service"
    wants.symlink_to("../lab-agent.service")
