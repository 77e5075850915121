#!/usr/bin/python3 -IS
"""A libvirt hook that only logs: one JSON object for each call, with what there is at that moment.

Where /root/refuse names the operation, it exits with 1, to see what libvirt does then.
"""

import glob
import json
import os
import re
import sys

RUN = "/run/libvirt/qemu"
ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/cpuset")  # of cgroup version 2 and 1


def main() -> int:
    guest, operation, part, extra = sys.argv[1:5]
    document = sys.stdin.read()
    call = {
        "call": f"{operation} {part} {extra}",
        "stdin": re.sub(r"^.*?<(\w+).*", r"\1", document, flags=re.DOTALL),
        "has_status_file": os.path.exists(f"{RUN}/{guest}.xml"),
        "qemu": process(guest),
        "vcpu_groups": sum(vcpu_groups(guest, root) for root in ROOTS),
    }
    with open("/root/hook.log", "a") as file:
        file.write(json.dumps(call) + "\n")
    return int(os.path.exists(f"/root/refuse-{operation}"))


def vcpu_groups(guest: str, root: str) -> int:
    """Return the number of cgroups that libvirt made for the guest's vCPUs."""
    return len(glob.glob(f"{root}/machine*/*{guest}*/**/vcpu?", recursive=True))


def process(guest: str) -> str:
    """Return whether the guest's QEMU is there, by the pid file that libvirt keeps of it."""
    try:
        with open(f"{RUN}/{guest}.pid") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError as missing:
        return "no pid file" if missing.filename.startswith(RUN) else "gone"
    return "gone" if state == "Z" else "there"


sys.exit(main())
