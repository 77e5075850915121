"""Real components: a guest to boot, kvm-launch as a process, a libvirtd of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.components import QEMU, ROOT, Launcher, eventually

LIBVIRTD = """
set -e
for pair in /run/libvirt:run /var/lib/libvirt:lib /var/cache/libvirt:cache /var/log/libvirt:log \\
    /etc/libvirt:etc /run/lock:lock
do
    mkdir -p "${pair%%:*}"
    mount --bind "$1/${pair##*:}" "${pair%%:*}"
done
exec libvirtd --pid-file "$1/libvirtd.pid"
"""
"""A libvirtd whose every directory is below $1, in a mount namespace of its own."""

QEMU_CONF = """
user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
namespaces = []
stdio_handler = "file"
cgroup_controllers = []
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """kvm-launch, with everything of its own below a temporary directory."""
    if not QEMU.exists():
        pytest.skip("there is no QEMU here: apt install qemu-system-x86")
    return Launcher(tmp_path)


@pytest.fixture
def guest() -> Path:
    """The folder with the example guest's kernel and initramfs."""
    folder = ROOT / "build" / "guest"
    if not (folder / "initramfs.img").exists():
        pytest.skip("the example guest is not built: make guest")
    return folder


@pytest.fixture(scope="session")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a libvirtd of the tests' own, in its own directories."""
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of the tests' own needs a mount namespace: only root can make one")
    if shutil.which("libvirtd") is None:
        pytest.skip("there is no libvirtd here: apt install libvirt-daemon-system")
    base = tmp_path_factory.mktemp("libvirt")
    for name in ("run", "lib", "cache", "log", "lock"):
        (base / name).mkdir()
    shutil.copytree("/etc/libvirt", base / "etc", symlinks=True)
    shutil.rmtree(base / "etc" / "qemu" / "networks" / "autostart", ignore_errors=True)
    (base / "etc" / "qemu.conf").write_text(QEMU_CONF)
    with (base / "libvirtd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", LIBVIRTD, "sh", base],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            socket = base / "run" / "libvirt-sock"
            eventually(lambda: socket.exists() or process.poll() is not None, seconds=120)
            assert process.poll() is None, (base / "libvirtd.log").read_text()
            yield f"qemu:///system?socket={socket}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
