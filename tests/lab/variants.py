"""The kinds of server there are.

Those of one Debian release share an image (it has its kernels and every program): a variant is a
release, a kernel, an init, words on the kernel's command line, and what is done once before the
server is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from .debian import BACKPORTS, SID, SUITE, TRIXIE


@dataclass(frozen=True)
class Variant:
    """One kind of server."""

    name: str
    about: str
    release: str = SUITE
    """The Debian release that is on the disk."""
    kernel: str = SUITE
    """The suite that the kernel is from."""
    init: str = "/sbin/init"
    append: str = ""
    """More words for the kernel's command line."""
    warm: tuple[str, ...] = ()
    """Commands run, in this order, before the server is frozen."""

    @property
    def has_systemd(self) -> bool:
        """Its init is systemd."""
        return self.init == "/sbin/init"

    @property
    def has_remote_partitions(self) -> bool:
        """The kernel makes partitions of groups whose parents are none: from 6.7 on."""
        return self.kernel != SUITE


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("default", "kernel 6.1, systemd 252, cgroup v2"),
        Variant("backports", "kernel 6.12 or newer (remote partitions)", kernel=BACKPORTS),
        Variant(
            "trixie",
            "Debian 13: kernel 6.12, systemd 257, libvirt 11.3, QEMU 10.0",
            release=TRIXIE,
            kernel=TRIXIE,
        ),
        Variant(
            "sid", "Debian unstable, the newest of everything, no gate", release=SID, kernel=SID
        ),
        Variant("nosystemd", "cgroup v2, an init of our own", init="/usr/local/sbin/lab-init"),
        Variant(
            "v1",
            "cgroup v1",
            append="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
        ),
        Variant(
            "isolcpus",
            "CPUs 6-7 isolated on the kernel's command line",
            append="isolcpus=managed_irq,domain,6-7 nohz_full=6-7 rcu_nocbs=6-7",
        ),
        Variant(
            "irqbalance",
            "irqbalance running",
            warm=("systemctl unmask irqbalance", "systemctl enable --now irqbalance"),
        ),
        Variant(
            "qemu10",
            "QEMU 10 inside",
            warm=(
                # one module left of the old QEMU, and the new one dies when libvirt probes it
                "rm -r /usr/lib/x86_64-linux-gnu/qemu && cp -a /opt/qemu-10/. /",
                "systemctl restart libvirtd",
            ),
        ),
    )
}

AS_INSTALLED = ("default", "backports", "trixie", "sid")
"""Those on which nothing is unusual but its age."""

IN_CI = ("default", "trixie")
"""The variants that every change is tried on."""
