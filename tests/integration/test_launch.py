"""kvm-launch with a real QEMU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kvmhooks.values import CpuSet
from tests.integration.components import (
    ROOT,
    Launcher,
    eventually,
    processes_of,
    read_until,
)

QUICKSTART = ROOT / "examples" / "quickstart.toml"


def affinities(process: int) -> dict[str, str]:
    """Thread name to the CPUs that it may run on, read from /proc."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        status = (task / "status").read_text()
        (cpus,) = (line for line in status.splitlines() if line.startswith("Cpus_allowed_list"))
        found[(task / "comm").read_text().strip()] = cpus.split()[1]
    return found


def running(launcher: Launcher, name: str) -> int:
    """The QEMU of a VM, once the VM runs: its vCPU has a thread and its sockets are there."""
    eventually(lambda: processes_of(name) and launcher.left_behind())
    (process,) = processes_of(name)
    eventually(lambda: any(thread.startswith("CPU 0/") for thread in affinities(process)))
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for kvm-launch; give its exit code and output."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_the_quickstart_boots_and_sees_what_was_planned(launcher: Launcher, guest: Path) -> None:
    """A real Linux with 4 vCPUs, 2 NUMA nodes and a disk reports itself, and all agrees."""
    assert guest.exists()
    ran = launcher.run(QUICKSTART)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '{"kvmhooks-guest":1,' in ran.stdout
    for role in ("vCPU 0", "vCPU 3", "iothread 1", "emulator"):
        (line,) = (
            line for line in ran.stdout.splitlines() if line.startswith(role) and "planned" in line
        )
        assert line.endswith("as planned")
        assert "NOT" not in line
    assert "it sees what was planned: 2 sockets, 2 cores, 4 threads, 2 NUMA nodes" in ran.stdout
    assert "end: the guest powered off" in ran.stdout
    assert launcher.left_behind() == []
    assert processes_of("quickstart") == []


NETWORK = """\
mount -t sysfs none /sys
ip tuntap add dev tapq mode tap multi_queue
ip link set tapq mtu 1400 up
exec "$@"
"""
"""A network of its own, with a tap in it; sysfs shows the network that it was mounted in."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root has a network of its own")
def test_linux_sees_queues_caches_and_distances(launcher: Launcher, guest: Path) -> None:
    """2 sockets with an L3 each, 2 cells, a disk with 3 queues and a tap with 4 and an MTU: what
    Linux says of itself is what was planned."""
    spec = launcher.base / "queues.toml"
    spec.write_text(
        f"""
        name = "queues"
        machine.accel = "tcg"
        guest.report = true
        cpu = {{ vcpus = 8, sockets = 2, cores = 2, threads = 2 }}
        memory = {{ size = "512MiB", cells = 2 }}
        [boot]
        kernel = "{guest}/vmlinuz"
        initrd = "{guest}/initramfs.img"
        cmdline = "console=ttyS0 quiet no_timer_check"
        [[disk]]
        path = "{guest}/disk.img"
        cache = "writeback"
        queues = 3
        [[net]]
        type = "tap"
        device = "tapq"
        mac = "52:54:00:00:00:07"
        queues = 4
        mtu = 1400
        vhost = false
        """
    )
    alone = ("unshare", "--net", "--mount", "sh", "-euc", NETWORK, "sh")
    launcher.program = (*alone, *launcher.program)
    ran = launcher.run("--json", spec)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["differences"] == []
    assert [cpu["l3"] for cpu in report["guest"]["cpus"]] == ["0-3"] * 4 + ["4-7"] * 4
    assert [node["distances"] for node in report["guest"]["nodes"]] == [[10, 11], [11, 10]]
    assert [disk["queues"] for disk in report["guest"]["disks"]] == [3]
    assert report["guest"]["nets"] == [{"mac": "52:54:00:00:00:07", "mtu": 1400, "queues": 4}]


def test_json_is_one_document_and_the_console_goes_elsewhere(
    launcher: Launcher, guest: Path
) -> None:
    """With --json stdout is one document with every thread and what the guest saw."""
    assert guest.exists()
    ran = launcher.run("--json", QUICKSTART)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    roles = [thread["role"] for thread in report["threads"]]
    assert roles == ["vCPU 0", "vCPU 1", "vCPU 2", "vCPU 3", "iothread 1", "emulator"]
    assert all(thread["planned"] == thread["affinity"] for thread in report["threads"])
    assert [node["cpus"] for node in report["guest"]["nodes"]] == ["0-1", "2-3"]
    assert report["differences"] == []
    assert '{"kvmhooks-guest":1,' in ran.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a dedicated CPU needs a second one")
def test_threads_are_on_their_own_cpus_while_the_vm_runs(launcher: Launcher) -> None:
    """A dedicated vCPU has its CPU, and everything else of QEMU is kept off it."""
    vm = launcher.vm(
        "pinned",
        cpu='vcpus = 1\nplacement = "dedicated"\nthreads = 1',
        text="[console]\ntype='none'",
    )
    plan = json.loads(launcher.run("--print", "plan", "--json", vm).stdout)
    with launcher.start(vm) as process:
        try:
            qemu = running(launcher, "pinned")
            vcpu, emulator = plan["vcpus"][0]["cpus"], plan["emulator"]
            assert CpuSet.parse(vcpu).isdisjoint(CpuSet.parse(emulator))
            eventually(lambda: set(affinities(qemu).values()) == {vcpu, emulator})
            for thread, cpus in affinities(qemu).items():
                assert cpus == (vcpu if thread.startswith("CPU 0/") else emulator), thread
        finally:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        status, out, err = end(process)
    assert status == 3, out + err  # a firmware does not power off when it is asked to
    assert processes_of("pinned") == []
    assert launcher.left_behind() == []


def test_sigterm_presses_the_power_button(launcher: Launcher, guest: Path) -> None:
    """A guest that listens to ACPI powers off at the first SIGTERM, and that is a good end."""
    vm = launcher.vm(
        "polite",
        top='[machine]\naccel = "tcg"\n[boot]\n'
        f'kernel = "{guest}/vmlinuz"\ninitrd = "{guest}/initramfs.img"\n'
        'cmdline = "console=hvc0 quiet no_timer_check kvmhooks.hold"',
        text='[console]\ntype = "virtio"',
        patience=20,
    )
    vm.write_text(vm.read_text().replace("64MiB", "256MiB"))
    with launcher.start(vm) as process:
        assert process.stdout is not None
        output = read_until(process.stdout, "holding until")
        process.send_signal(signal.SIGTERM)
        status, out, err = end(process)
    assert status == 0, output + out + err
    assert "end: the guest powered off" in out
    assert launcher.left_behind() == []


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5])
def test_ctrl_c_at_any_moment_leaves_nothing(launcher: Launcher, delay: float) -> None:
    """SIGINT at any moment ends kvm-launch without a traceback, and its QEMU with it."""
    vm = launcher.vm("brief")
    process = launcher.start(vm)
    time.sleep(delay)
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
    out, err = process.communicate(timeout=10)
    assert process.returncode in {1, 3, -signal.SIGINT}, out + err
    # Python itself may still be starting: what it says then holds nothing of ours.
    assert "Traceback" not in err or "/kvm_launch/" not in err
    assert processes_of("brief") == []
    assert launcher.left_behind() == []


def test_a_reader_that_goes_away_is_nothing_to_the_vm(launcher: Launcher, guest: Path) -> None:
    """When nobody reads the console any more, the guest runs to its end, and that is told once."""
    assert guest.exists()
    with launcher.start(QUICKSTART) as process:
        assert process.stdout is not None
        read_until(process.stdout, "warning: ")
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        status = process.wait(timeout=30)
    told = r"kvm-launch: standard output: \d+ bytes are not written: Broken pipe\n"
    assert (status, re.fullmatch(told, err) is not None) == (0, True), err
    assert processes_of("quickstart") == []
    assert launcher.left_behind() == []


def test_a_time_limit_ends_the_vm(launcher: Launcher) -> None:
    """After --timeout the power button is pressed, then QEMU is told to quit: exit code 3."""
    ran = launcher.run("--timeout", "0.5", launcher.vm("limited"))
    assert ran.returncode == 3
    assert "0.5 s were over" in ran.stdout
    assert processes_of("limited") == []


def test_qemu_that_dies_at_once_has_its_last_words_shown(launcher: Launcher) -> None:
    """QEMU's own message is passed on, with exit code 3 and nothing left behind."""
    broken = launcher.base / "qemu"
    broken.write_text("#!/bin/sh\necho 'cannot set up guest memory' >&2\nexit 1\n")
    broken.chmod(0o755)
    vm = launcher.vm("broken", top=f'[machine]\naccel = "tcg"\nemulator = "{broken}"')
    ran = launcher.run(vm)
    assert ran.returncode == 3
    assert "cannot set up guest memory" in ran.stderr
    assert "ended with status 1" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert launcher.left_behind() == []


def test_a_running_vm_is_not_started_twice(launcher: Launcher) -> None:
    """The second kvm-launch of a name is refused and the first one keeps running."""
    vm = launcher.vm("single")
    with launcher.start(vm) as first:
        try:
            qemu = running(launcher, "single")
            second = launcher.run(vm)
            assert second.returncode == 1
            assert second.stderr == "name: found 'single', expected one that does not run already\n"
            assert processes_of("single") == [qemu]
        finally:
            first.send_signal(signal.SIGINT)
            time.sleep(0.3)
            first.send_signal(signal.SIGINT)
            end(first)
    assert launcher.left_behind() == []


def test_a_guest_that_does_not_report_is_not_as_planned(launcher: Launcher) -> None:
    """Silence is a failure if the spec says that the guest reports."""
    vm = launcher.vm("silent", text="[guest]\nreport = true")
    ran = launcher.run("--timeout", "0.5", vm)
    assert ran.returncode == 3
    assert "guest: the guest did not report what it sees" in ran.stdout


def test_kvm_is_probed_once_per_boot(launcher: Launcher) -> None:
    """``auto`` says in a line what it chose and why, and the second VM relies on the same."""
    if not Path("/dev/kvm").exists():
        pytest.skip("there is no /dev/kvm to probe")
    vm = launcher.vm("probed")
    first = launcher.run("--timeout", "0.3", vm)
    verdict = launcher.run_dir / ".kvm-probe.json"
    written = verdict.stat().st_mtime_ns
    second = launcher.run("--timeout", "0.3", vm)
    assert verdict.stat().st_mtime_ns == written
    assert first.stdout.startswith("accelerator: ")
    assert first.stdout.splitlines()[0] == second.stdout.splitlines()[0]


def test_printing_and_dry_run_start_nothing(launcher: Launcher, guest: Path) -> None:
    """--print makes no file and no process; --dry-run makes no process."""
    assert guest.exists()
    for what in ("argv", "xml", "plan", "claim"):
        ran = launcher.run("--print", what, QUICKSTART)
        assert ran.returncode == 0, ran.stderr
        assert "quickstart" in ran.stdout
    assert not launcher.run_dir.exists()
    dry = launcher.run("--dry-run", QUICKSTART)
    assert dry.returncode == 0
    assert "emulator" in dry.stdout
    assert launcher.left_behind() == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--host", "."], 2, "--host: another host's plan cannot run here"),
        (["--print", "json"], 2, "--print"),
        (["--libvirt=qemu+ssh://far/system"], 1, "expected the URI of a libvirtd on this host"),
        (["--libvirt=qemu:///system?socket=/nowhere"], 3, "/nowhere"),
    ],
)
def test_wrong_words_are_one_message(
    launcher: Launcher, arguments: list[str], status: int, message: str
) -> None:
    """An impossible request is answered in words, with the exit code of its kind."""
    ran = launcher.run(*arguments, launcher.vm("wrong"))
    assert ran.returncode == status
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_what_is_missing_is_named_all_at_once(launcher: Launcher) -> None:
    """A disk, a kernel, a bridge or a QEMU that is not there: each with its place, exit code 1."""
    vm = launcher.vm(
        "missing",
        top='[boot]\nkernel = "no-kernel"',
        text='[[disk]]\npath = "no.img"\n[[net]]\ntype = "bridge"\ndevice = "nobridge"',
    )
    ran = launcher.run(vm)
    assert ran.returncode == 1
    base = launcher.base
    assert ran.stderr == (
        f"{vm}: boot.kernel: found no file '{base}/no-kernel', "
        "expected a file that can be read\n"
        f"{vm}: disk[0].path: found no file '{base}/no.img', "
        "expected an image to read and write\n"
        f"{vm}: net[0].device: found no interface 'nobridge', expected a bridge\n"
    )
    vm = launcher.vm("missing", top='[machine]\nemulator = "no-qemu"')
    ran = launcher.run(vm)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"{vm}: machine.emulator: found '{base}/no-qemu', expected a program that can be run\n"
    )
    assert not launcher.run_dir.exists()


def test_a_missing_file_is_one_message(launcher: Launcher) -> None:
    """A description that is not there is named, with what was expected."""
    ran = launcher.run(launcher.base / "none.toml")
    assert (ran.returncode, ran.stderr) == (
        1,
        f"{launcher.base}/none.toml: found No such file or directory, expected a readable file\n",
    )
