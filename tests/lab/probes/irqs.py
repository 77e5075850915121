"""Interrupts that some CPUs took, from the differences of /proc/interrupts.

Prints JSON: [[source, name, cpu, count]...]; the argument is {"cpus": [...], "seconds": S}.
"""

import json
import sys
import time


def main() -> None:
    request = json.loads(sys.argv[1])
    before = read()
    time.sleep(request["seconds"])
    after = read()
    rows = []
    for (source, name, cpu), count in sorted(after.items()):
        taken = count - before.get((source, name, cpu), 0)
        if taken and cpu in request["cpus"]:
            rows.append([source, name, cpu, taken])
    print(json.dumps(rows))


def read() -> dict[tuple[str, str, int], int]:
    counts = {}
    with open("/proc/interrupts") as file:
        cpus = [int(word[3:]) for word in file.readline().split()]
        for line in file:
            source, rest = line.strip().split(":", 1)
            words = rest.split(None, len(cpus))
            if len(words) < len(cpus):
                continue  # ERR and MIS count for the whole machine
            name = words[len(cpus)].strip() if len(words) > len(cpus) else ""
            for cpu, count in zip(cpus, words, strict=False):
                counts[source, name, cpu] = int(count)
    return counts


main()
