"""The administrator's limits and settings, from ``/etc/kvmhooks``, as the hook has them.

All of the files is read as a start reads it, so that a mistake in a VM's default is one here, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import field, frozen

from kvmhooks.errors import IsolationError
from kvmhooks.host.model import Host
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.administrator import Limits
from kvmhooks.survey.sources import Sources
from kvmhooks.values import CpuSet


@frozen
class Administration:
    """All that the administrator says."""

    limits: Limits = field(factory=Limits)
    defaults: Mapping[str, str] = field(factory=dict)
    policies: Mapping[str, Mapping[str, str]] = field(factory=dict)
    """Those of ``vm.d``, by the VMs' names."""
    warnings: tuple[str, ...] = ()
    """The reasons why nothing of it is known."""


def administration_of(sources: Sources, names: Collection[str]) -> Administration:
    """Return the administrator's limits, and the settings for the VMs with these names.

    Without names there are no settings: they are of VMs that kvmhooks isolates, and whether a
    domain of libvirt's is one its own XML tells.

    Raises ``IsolationError`` for a mistake in a file: no VM of ours starts with it either.
    """
    system = sources.system
    if system is None:
        return Administration()
    try:
        limits, defaults = administrator.limits(system), administrator.defaults(system)
        if not names:
            return Administration(limits)
        own = {name: administrator.policy_of(system, name) for name in names}
        policies = {name: settings for name, settings in own.items() if settings is not None}
        return Administration(limits, defaults, policies)
    except IsolationError as error:
        if sources.is_readable:
            raise
        missing = f"{error}; planned as if it kept nothing for the host"
        return Administration(warnings=(missing,))


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
