"""The means by which kvm-launch isolates CPUs here, and the reasons why it cannot."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.hook import entry, fastpath
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System


def unable(system: System) -> str:
    """Return why no CPU can be isolated here; empty where it can."""
    if not may_isolate(system):
        return "only root can isolate CPUs and bind devices"
    if fastpath.is_disabled(system.root):
        return "/etc/kvmhooks/disabled exists"
    try:
        entry.check_place(system.root)
    except IsolationError as error:
        return str(error)
    return ""


def registry_of(system: System) -> Registry:
    """Return the registry of a host."""
    return Registry(
        system, Store(system.root), helper=[sys.executable, "-I", "-m", "kvmhooks.cli.main"]
    )


def may_isolate(system: System) -> bool:
    """Return whether we are root, or the host is a tree of files."""
    return os.geteuid() == 0 or not system.is_real


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise the kernel's refusals as errors of ours."""
    try:
        yield
    except OSError as error:
        raise IsolationError(f"{name}: {words_of(error)}") from error
