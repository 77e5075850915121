"""A Linux guest uses what kvm-launch's helpers give it: a shared folder, a TPM, a network."""

from __future__ import annotations

import gzip
import http.server
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_launch.prepare.helper_programs import found
from tests.integration.components import ROOT, Launcher

WANTED = {"virtiofsd", "swtpm", "passt"}

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
while read -r module; do insmod "/more/$module"; done </more/order
exec </dev/console >/dev/console 2>&1
mount -t virtiofs shared /mnt && echo "folder: $(cat /mnt/word)"
echo "the guest was here" >/mnt/answer
echo "tpm: $(cat /sys/class/tpm/tpm0/tpm_version_major) $(ls /dev/tpm0)"
ip link set eth0 up
udhcpc -i eth0 -n -q -s /lease >/dev/null 2>&1
echo "net: $(wget -q -O - "http://$(cat /router):PORT/word")"
umount /mnt
poweroff -f
"""

LEASE = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "${router%% *}"
echo "${router%% *}" >/router
"""

pytestmark = pytest.mark.skipif(
    not found(WANTED).keys() >= WANTED, reason="apt install qemu-system-common swtpm passt"
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a server on this host's loopback alone."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "word").write_text("from the host's loopback")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            """Nothing is to be read of it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def write_initramfs(guest: Path, target: Path, port: int) -> None:
    """The example guest's, and behind it an archive with another init and more modules."""
    build = runpy.run_path(str(ROOT / "examples/guest/build.py"))
    (modules,) = (guest / "kernel" / "lib" / "modules").iterdir()
    more = build["needed"](modules, ("virtiofs",))
    root = target.parent / "more"
    for name in ("more", "mnt"):
        (root / name).mkdir(parents=True)
    for path in more:
        shutil.copy(path, root / "more")
    (root / "more" / "order").write_text("".join(f"{path.name}\n" for path in more))
    for name, text in {"helped": INIT.replace("PORT", str(port)), "lease": LEASE}.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    archive = subprocess.run(
        ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"],
        input="\n".join(names).encode(), cwd=root, check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    whole = (guest / "initramfs.img").read_bytes() + gzip.compress(archive, compresslevel=1)
    target.write_bytes(whole)


def test_linux_has_a_shared_folder_a_tpm_and_the_hosts_network(
    launcher: Launcher, guest: Path, served: int
) -> None:
    """It reads and writes the folder, sees a TPM 2.0, and reaches the host by way of passt."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    if not any(line.split()[1] == "00000000" for line in routes):
        pytest.skip("passt needs a host with a default route")
    write_initramfs(guest, launcher.base / "initramfs.img", served)
    (launcher.base / "shared").mkdir()
    (launcher.base / "shared" / "word").write_text("from the host's folder")
    spec = launcher.base / "helped.toml"
    spec.write_text(
        f"""
        name = "helped"
        machine.accel = "tcg"
        cpu.vcpus = 1
        memory.size = "256MiB"
        tpm = {{ model = "crb", state = "tpm" }}
        filesystem = [{{ path = "shared", tag = "shared" }}]
        net = [{{ type = "passt", mac = "52:54:00:00:00:01" }}]
        [boot]
        kernel = "{guest}/vmlinuz"
        initrd = "initramfs.img"
        cmdline = "console=ttyS0 quiet no_timer_check rdinit=/helped"
        """
    )
    ran = launcher.run("--timeout", "60", spec)
    assert "folder: from the host's folder" in ran.stdout, ran.stdout + ran.stderr
    assert "tpm: 2 /dev/tpm0" in ran.stdout, ran.stdout
    assert "net: from the host's loopback" in ran.stdout, ran.stdout
    assert (launcher.base / "shared" / "answer").read_text() == "the guest was here\n"
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "end: the guest powered off" in ran.stdout
    assert launcher.left_behind() == []
