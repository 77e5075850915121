"""The administrator's limits: ``[host]`` of ``/etc/kvmhooks/kvmhooks.toml``, as the hook has it.

All of the file is read as a start reads it, so that a mistake in a VM's default is one here, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvmhooks.errors import IsolationError
from kvmhooks.host.model import Host
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.administrator import Limits
from kvmhooks.survey.sources import Sources
from kvmhooks.values import CpuSet


def limits_of(sources: Sources, names: Iterable[str] = ()) -> tuple[Limits, tuple[str, ...]]:
    """Return the limits, and what keeps them from being known.

    Raises ``IsolationError`` for a mistake in the file, with which no VM of ours starts either, or
    in that of one of the VMs' ``names`` that libvirt is to run.
    """
    if sources.system is None:
        return Limits(), ()
    try:
        for name in names if sources.has_libvirt else ():
            administrator.policy_of(sources.system, name)
        return administrator.checked_limits(sources.system), ()
    except IsolationError as error:
        if sources.is_readable:
            raise
        return Limits(), (f"{error}; planned as if it kept nothing for the host",)


def without_effect(limits: Limits, host: Host) -> list[str]:
    """Return a sentence on CPUs of ``host.housekeeping`` that keep nothing for this host."""
    kept, there = limits.housekeeping, CpuSet(cpu.id for cpu in host.cpus or ())
    where = f"/{administrator.HOST}: host.housekeeping: found {kept.brief()}"
    if kept - there:
        absent = (kept - there).brief()
        return [f"{where}, expected CPUs of this host, {there.brief()}: {absent} keep nothing"]
    if kept and kept.isdisjoint(host.online):
        return [f"{where}, expected some that are online: these keep nothing now"]
    return []
