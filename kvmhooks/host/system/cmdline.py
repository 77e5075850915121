"""The kernel's command line, taken apart into what it means.

Quoting and the form of CPU lists are those of the kernel's Documentation/admin-guide/
kernel-parameters.rst, the parameters those of kernel-parameters.txt beside it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import ValueFormatError
from kvmhooks.host.system.system import BootPages, Isolation
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.files.flaws import Flaws

_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_ISOLCPUS_FLAGS: Final = frozenset({"nohz", "domain", "managed_irq"})
_NUMBERED: Final = re.compile(r"\d{1,4}:\d{1,9}(?:,\d{1,4}:\d{1,9})*", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,6})([KMGkmg])", re.ASCII)
_KIB: Final = {"k": 1, "m": 1 << 10, "g": 1 << 20}
_AT: Final = "proc/cmdline"


def parse_parameters(cmdline: str) -> dict[str, tuple[str, ...]]:
    """Give every value of each parameter, in order; one without ``=`` has the value ``""``.

    Dashes in a name are underscores to the kernel. The words after ``--`` are for init.
    """
    parameters: dict[str, tuple[str, ...]] = {}
    for word in _WORD.findall(cmdline):
        if word == "--":
            break
        name, _, value = word.replace('"', "").partition("=")
        key = name.replace("-", "_")
        parameters[key] = (*parameters.get(key, ()), value)
    return parameters


def parse_isolation(
    parameters: Mapping[str, tuple[str, ...]], last_cpu: int | None, flaws: Flaws
) -> Isolation:
    """Read the parameters that keep CPUs quiet; ``last_cpu`` is what ``N`` means in a list."""
    flags: list[str] = []
    isolcpus = None
    if parameters.get("isolcpus"):
        words = parameters["isolcpus"][-1].split(",")
        while words and words[0] in _ISOLCPUS_FLAGS:
            flags.append(words.pop(0))
        isolcpus = _cpus("isolcpus", ",".join(words), last_cpu, flaws)
    lists = {
        name: _cpus(name, parameters[name][-1], last_cpu, flaws)
        for name in ("nohz_full", "rcu_nocbs", "irqaffinity")
        if parameters.get(name)
    }
    return Isolation(isolcpus=isolcpus, isolcpus_flags=tuple(flags), **lists)


def parse_boot_pages(cmdline: str) -> tuple[BootPages, ...]:
    """Read ``hugepagesz=SIZE hugepages=N``, which count in pairs, or ``hugepages=NODE:N,…``."""
    size: int | None = None
    found: list[BootPages] = []
    for word in _WORD.findall(cmdline):
        name, _, value = word.partition("=")
        if name == "hugepagesz":
            match = _SIZE.fullmatch(value)
            size = int(match[1]) * _KIB[match[2].lower()] if match is not None else None
        elif name == "hugepages" and value.isascii() and value.isdecimal() and len(value) < 10:
            found.append(BootPages(size_kib=size, count=int(value)))
        elif name == "hugepages" and _NUMBERED.fullmatch(value):
            pairs = (pair.split(":") for pair in value.split(","))
            found += [BootPages(size, int(count), int(node)) for node, count in pairs]
    return tuple(found)


def _cpus(name: str, text: str, last_cpu: int | None, flaws: Flaws) -> CpuSet | None:
    """Read a list in which ``N`` is the last CPU and ``all`` all of them."""
    if last_cpu is not None:
        text = re.sub(r"\ball\b", "0-N", text)
        text = re.sub(r"\bN\b", str(last_cpu), text)
    try:
        return CpuSet.parse(text)
    except ValueFormatError:
        flaws.add(_AT, f"{name}={text[:60]} is no list of CPUs")
        return None
