"""Real components: a guest to boot, kvm-launch as a process, a libvirtd of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

from tests.guard import STAYS
from tests.integration.components import QEMU, ROOT, Launcher, eventually
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant

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
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """kvm-launch, with everything of its own below a temporary directory."""
    if not QEMU.exists():
        pytest.skip("there is no QEMU here: apt install qemu-system-x86")
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.end()


@pytest.fixture
def root(tmp_path: Path, launcher: Launcher) -> Path:
    """A host with as many CPUs as this one, six interrupts and no CPU sets: a tree of files."""
    root = tmp_path / "host"
    plant(Kernel("plain", os.cpu_count() or 2, 6), root)
    shutil.rmtree(root / "sys/fs/cgroup")
    launcher.beside(root)
    return root


@pytest.fixture
def guest() -> Path:
    """The folder with the example guest's kernel and initramfs."""
    folder = ROOT / "build" / "guest"
    if not (folder / "initramfs.img").exists():
        pytest.skip("the example guest is not built: make guest")
    return folder


class Daemon:
    """A libvirtd whose every directory is below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The address where clients find it."""
        return f"qemu:///system?socket={self.base / 'run' / 'libvirt-sock'}"

    @property
    def pid(self) -> int:
        """Its process."""
        return int((self.base / "libvirtd.pid").read_text())

    def start(self) -> None:
        """Start it, and wait until it listens; VMs that run already are found again."""
        socket = self.base / "run" / "libvirt-sock"
        socket.unlink(missing_ok=True)
        with (self.base / "libvirtd.log").open("ab") as log:
            process = self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", LIBVIRTD, "sh",
                 self.base],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, STAYS: "1"},
            )  # fmt: skip
        eventually(lambda: socket.exists() or process.poll() is not None, seconds=120)
        assert process.poll() is None, (self.base / "libvirtd.log").read_text()

    def end(self, number: signal.Signals) -> None:
        """End it with a signal; its VMs stay."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=60)

    def clear(self) -> None:
        """End and undefine whatever VMs there are."""
        with closing(libvirt.open(self.uri)) as connection:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                if domain.isPersistent():
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A libvirtd of the tests' own, in its own directories."""
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
    daemon = Daemon(base)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end(signal.SIGTERM)


@pytest.fixture
def libvirtd(daemon: Daemon) -> Iterator[str]:
    """The URI of the tests' libvirtd; what a test leaves there when it fails goes with it."""
    yield daemon.uri
    daemon.clear()
