"""The cost of kvm-launch while its VM runs: CPU time over a minute, and resident memory.

The bounds that it is to stay below are 0.1 % of a CPU and 40 MiB; both are counts of the kernel
(``/proc/PID/schedstat`` in nanoseconds, ``VmRSS``), not times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 60
SETTLED = 3
VM = 'name = "bench"\nmachine.accel = "tcg"\ncpu.vcpus = 1\nmemory.size = "64MiB"\n'


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        vm = Path(folder, "vm.toml")
        vm.write_text(VM + "shutdown.timeout = 1\n")
        program = Path(sys.executable).with_name("kvm-launch")
        process = subprocess.Popen(
            [program, "--run-dir", Path(folder, "run"), vm], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            while process.stdout.readline() != b"state: running\n":
                assert process.poll() is None, "it has ended"
            time.sleep(SETTLED)
            before = nanoseconds(process.pid)
            time.sleep(SECONDS)
            used = nanoseconds(process.pid) - before
            memory = resident(process.pid)
        finally:
            process.terminate()
            process.communicate()
    print(f"a VM's supervisor: {used / SECONDS / 1e7:.3f} % of a CPU, {memory / 1024:.0f} MiB")


def nanoseconds(pid: int) -> int:
    """Return the CPU time of a process with one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def resident(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


if __name__ == "__main__":
    main()
