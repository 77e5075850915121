"""A VM that is ready once the agent in its Linux guest answers."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

from tests.integration.components import Launcher, read_until
from tests.integration.test_launch_verbs import shown, verb

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t sysfs none /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
exec </dev/console >/dev/console 2>&1
echo "the guest is up, its agent is not"
sleep 3
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = org.qemu.guest_agent.0 ] && agent=/dev/${port##*/}
done
exec 3<>"$agent"
while :; do
    read -r line <&3 || { sleep 0.2; continue; }  # the host has hung up
    id=$(echo "$line" | sed 's/.*"id": *\\([0-9]*\\).*/\\1/')
    echo "{\\"return\\": $id}" >&3
done
"""


def write_initramfs(guest: Path, target: Path) -> None:
    """The example guest's, and behind it an archive with another init."""
    root = target.parent / "more"
    root.mkdir()
    (root / "agent").write_text(INIT)
    (root / "agent").chmod(0o755)
    archive = subprocess.run(
        ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"],
        input=b"agent", cwd=root, check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    target.write_bytes((guest / "initramfs.img").read_bytes() + gzip.compress(archive))


def test_it_is_ready_when_its_agent_answers(launcher: Launcher, guest: Path) -> None:
    """kvm-launch --detach waits for it, and says so before it leaves."""
    write_initramfs(guest, launcher.base / "initramfs.img")
    spec = launcher.vm(
        "asked",
        f"""
        [guest]
        agent = true
        [run]
        ready = "agent"
        [boot]
        kernel = "{guest}/vmlinuz"
        initrd = "initramfs.img"
        cmdline = "console=ttyS0 quiet no_timer_check rdinit=/agent"
        """,
        top="machine.accel = 'tcg'",
    )
    spec.write_text(spec.read_text().replace("64MiB", "256MiB"))
    process = launcher.start("--detach", spec)
    assert process.stdout is not None
    output = read_until(process.stdout, "its agent is not")
    assert shown(launcher) == {"asked": "running"}
    assert process.poll() is None
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"^state: running: the guest's agent answers$", output + out, re.MULTILINE)
    assert shown(launcher) == {"asked": "running"}
    assert verb(launcher, "stop", "--now", "asked").returncode == 0
    assert launcher.left_behind() == []
