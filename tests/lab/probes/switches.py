"""Tasks that ran on some CPUs, counted by the kernel's own sched_switch event.

It has a trace buffer to itself, so it disturbs nobody's tracing. Prints JSON:

    {"lost": N, "ran": [[cpu, pid, name, is_kernel, switches]...]}

The argument is {"cpus": [...], "seconds": S}.
"""

import collections
import glob
import json
import os
import re
import sys
import time
from collections.abc import Iterator

TRACING = "/sys/kernel/tracing"
BUFFER_KIB = 4096
LINE = re.compile(
    r" \[(\d+)\] .* sched_switch: prev_comm=(.*) prev_pid=(\d+) prev_prio=.*"
    r" ==> next_comm=(.*) next_pid=(\d+) "
)


def main() -> None:
    request = json.loads(sys.argv[1])
    cpus = set(request["cpus"])
    if not os.path.exists(TRACING + "/instances"):
        raise SystemExit(TRACING + " is not mounted")
    instance = f"{TRACING}/instances/lab-{os.getpid()}"
    os.mkdir(instance)
    try:
        lines, lost = record(instance, cpus, request["seconds"])
    finally:
        os.rmdir(instance)
    counts: collections.Counter[tuple[int, int, str]] = collections.Counter()
    for cpu, pid in occupants(cpus):
        counts[cpu, pid, name_of(pid)] += 0
    for line in lines:
        match = LINE.search(line)
        if match:
            cpu = int(match[1])
            counts[cpu, int(match[3]), match[2]] += 0
            counts[cpu, int(match[5]), match[4]] += 1
    ran = [
        [cpu, pid, name, is_kernel(pid), count]
        for (cpu, pid, name), count in sorted(counts.items())
        if pid != 0
    ]
    print(json.dumps({"lost": lost, "ran": ran}))


def record(instance: str, cpus: set[int], seconds: float) -> tuple[list[str], int]:
    write(instance + "/tracing_cpumask", f"{sum(1 << cpu for cpu in cpus):x}")
    write(instance + "/buffer_size_kb", str(BUFFER_KIB))
    write(instance + "/events/sched/sched_switch/enable", "1")
    time.sleep(seconds)
    write(instance + "/events/sched/sched_switch/enable", "0")
    lost = 0
    for cpu in cpus:
        with open(f"{instance}/per_cpu/cpu{cpu}/stats") as file:
            lost += sum(int(text) for text in re.findall(r"overrun: (\d+)", file.read()))
    with open(instance + "/trace", errors="replace") as file:
        return file.readlines(), lost


def occupants(cpus: set[int]) -> Iterator[tuple[int, int]]:
    """Tasks that are on these CPUs now: one that never leaves makes no event."""
    for path in glob.glob("/proc/[0-9]*/task/[0-9]*/stat"):
        try:
            with open(path) as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] == "R" and int(fields[36]) in cpus:
            pid = int(path.split("/")[4])
            if pid != os.getpid():
                yield int(fields[36]), pid


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def is_kernel(pid: int) -> bool | None:
    """Return whether it is a kernel thread; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return bool(int(text[text.rindex(")") + 2 :].split()[6]) & 0x00200000)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


main()
