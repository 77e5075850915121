"""The options of one ``kvm-launch``, as the modules below its command line are given them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen


@frozen
class LaunchOptions:
    """The options of a command line, for each VM that it names.

    Without any a VM is started here, and followed to its end.
    """

    accel: Literal["auto", "kvm", "tcg"] | None = None
    """The accelerator instead of that of ``machine.accel``."""
    captured_host: Path | None = None
    """The tree or archive of another host, for which is planned; this host without it."""
    libvirt_uri: str | None = None
    """The libvirtd that is to run the VM (https://libvirt.org/uri.html)."""
    printed: Literal["argv", "xml", "plan", "claim"] | None = None
    """The form of the plan that is printed instead of a start."""
    is_dry_run: bool = False
    """All is checked and planned, and nothing started."""
    is_json: bool = False
    """JSON goes to the standard output, and what is for people to the standard error."""
    is_quiet: bool = False
    """Nothing is told but what went wrong."""
    has_console: bool = False
    """Keys that are typed go to the guest's console."""
    is_detached: bool = False
    """The supervisor is left in the background once the VM runs."""
    is_migration: bool = False
    """The guest comes from the kvm-launch that runs it here."""
    run_dir: Path | None = None
    """The base of run directories; without it the user's own (``kvmhooks.qemu.run_dir``)."""
    timeout: float | None = None
    """Seconds after which the VM is asked to stop; None for no end."""
