"""``kvm-launch --print argv`` as a process: against a bare Python, and against virt-install.

kvm-launch is installed from the checkout into an environment of its own, as a user would have it;
virt-install talks to libvirt's test driver, which asks no daemon.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
import venv
from pathlib import Path

from measure import in_turns, show

ROOT = Path(__file__).resolve().parents[1]
VIRT_INSTALL = (
    *("virt-install", "--connect", "test:///default", "--print-xml", "--name", "quickstart"),
    *("--memory", "512", "--vcpus", "4", "--disk", "none", "--import"),
    *("--osinfo", "detect=off,require=off"),
)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder, "bin")
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([binaries / "pip", "install", *quiet, ROOT], check=True)
        vm = ROOT / "examples" / "quickstart.toml"
        commands = {
            "python3 -c pass": (binaries / "python3", "-c", "pass"),
            "kvm-launch --print argv": (binaries / "kvm-launch", "--print", "argv", vm),
            "kvm-launch --print xml": (binaries / "kvm-launch", "--print", "xml", vm),
            "virt-install --print-xml": VIRT_INSTALL,
        }
        best = in_turns(
            {name: functools.partial(_run, words) for name, words in commands.items()}, rounds=25
        )
    show(best, "python3 -c pass")
    show(best, "virt-install --print-xml")


def _run(words: tuple[object, ...]) -> None:
    command = [str(word) for word in words]
    subprocess.run(command, check=True, capture_output=True, cwd="/")


if __name__ == "__main__":
    main()
