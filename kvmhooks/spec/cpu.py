"""``[cpu]``: the virtual CPUs."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import CpuFeature, CpuModel, Number
from kvmhooks.values import CpuSet


@frozen(kw_only=True)
class Cpu:
    """The virtual CPUs."""

    vcpus: int
    """The number of vCPUs: sockets x dies x cores x threads."""
    current: Number | None = None
    """The number of them at the start; by default all. All have their places already."""
    placement: Literal["dedicated", "shared", "mixed"] = "shared"
    """dedicated: each vCPU has a host CPU to itself; shared: they float over a pool; mixed: those
    that `dedicated` names have one, the others float."""
    dedicated: CpuSet | None = enabled_by(on("placement", "mixed"))
    """Of a mixed VM, the vCPUs that have a host CPU each, as a list: "0-1,4"."""
    smt: Literal["share", "require", "isolate"] = enabled_by(
        on("placement", "dedicated", "mixed"), default="share"
    )
    """Of dedicated vCPUs: share: other VMs may use the siblings of their CPUs; require: whole host
    cores, every thread of them a vCPU; isolate: whole host cores, what the guest does not use of
    them stays idle."""
    kind: Literal["performance", "efficiency"] | None = enabled_by(
        on("placement", "dedicated", "mixed")
    )
    """Of dedicated vCPUs, the kind of core they need; by default any, performance cores first."""
    realtime: bool = enabled_by(on("placement", "dedicated", "mixed"), default=False)
    """Dedicated vCPUs run with real-time priority (SCHED_FIFO), on CPUs that the kernel isolates
    (isolcpus) if there are any.
    """
    ratio: int | None = enabled_by(on("placement", "shared", "mixed"))
    """Of shared vCPUs: at most so many on each CPU of the pool, other VMs' counted; by default
    without limit."""
    iothreads: Number | None = None
    """The number of iothreads for the disks that name none: 0 is QEMU's main loop; by default one
    for each such disk, at most one for two vCPUs.
    """
    model: CpuModel = CpuModel("host")
    """host, max, or a named model of QEMU. Under tcg host means max."""
    features: tuple[CpuFeature, ...] = ()
    """Features to add (+name) or take away (-name)."""
    migratable: bool | None = None
    """Only features that can be migrated are shown; false for all of the host's CPU."""
    pmu: bool | None = None
    """The guest has performance counters; by default as the model."""
    caches: Literal["auto", "host", "emulated"] = "auto"
    """The caches that the guest sees: the host's, QEMU's own with an L3, or as the model."""
    l3: Literal["core", "die", "socket"] | None = None
    """The part of the guest's topology that shares an L3 cache (QEMU 10.0, not in libvirt)."""
    hidden: bool = False
    """The guest is not told that it runs under KVM."""
    hint_dedicated: bool | None = None
    """The guest is told that its vCPUs are never preempted; by default if dedicated."""
    poll_control: bool | None = None
    """The guest may take over polling when idle from the host."""
    pv_ipi: bool | None = None
    """Interprocessor interrupts may be sent by hypercall."""
    pv_eoi: bool | None = None
    """The end of an interrupt may be told without leaving the guest."""
    pv_spinlocks: bool | None = None
    """A vCPU that waits for a lock may yield."""
    cpu_pm: bool = False
    """The guest puts idle host CPUs to sleep itself: quick to wake, looks busy."""
    hyperv: Literal["auto", "full", "none"] = "auto"
    """Hyper-V's interfaces: full: all that the target has; auto: full for Windows."""
    sockets: int | None = None
    """Guest sockets; by default one for each guest NUMA cell."""
    dies: int | None = None
    """Guest dies in a socket; by default 1."""
    cores: int | None = None
    """Guest cores in a die; by default what the others leave."""
    threads: int | None = None
    """Guest threads in a core; by default the host's when the vCPUs are dedicated, else 1."""
