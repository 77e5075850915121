"""The administrator's limits: ``[host]`` of ``/etc/kvmhooks/kvmhooks.toml``, as the hook has it."""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.administrator import Limits
from kvmhooks.survey.sources import Sources


def limits_of(sources: Sources) -> tuple[Limits, tuple[str, ...]]:
    """Return the limits, and what keeps them from being known.

    Raises ``IsolationError`` for a mistake in the file: no VM of ours starts with it either.
    """
    if sources.system is None:
        return Limits(), ()
    try:
        return administrator.limits(sources.system), ()
    except IsolationError as error:
        if sources.is_readable:
            raise
        return Limits(), (f"{error}; planned as if it kept nothing for the host",)
