"""The CPU model that the guest sees: one that shows it its threads."""

from __future__ import annotations

from kvmhooks.host.model import Host
from kvmhooks.machine.guest_cpu import WHOLE, GuestCpu
from kvmhooks.spec.model import Cpu


def choose_cpu(
    cpu: Cpu, host: Host, *, accel: str, threads: int
) -> tuple[GuestCpu, tuple[str, ...]]:
    """Return the CPU model of a guest with so many ``threads`` in a core, and why.

    An AMD CPU tells of its threads in leaf 0x8000001E, which it has with ``topoext`` only; Intel's
    do in leaf 0xB (arch/x86/kernel/cpu/topology.c and amd.c). So ``-cpu host`` on an AMD host needs
    the feature added, as QEMU leaves it out (target/i386/cpu.c). TCG has no host CPU to pass
    through; its ``max`` calls itself AMD and offers no ``topoext``, so it is told to be Intel's.
    """
    # The counters are no feature of CPUID, and libvirt has an element of its own for them.
    features = tuple(feature for feature in cpu.features if feature[1:] != "pmu")
    if cpu.model not in WHOLE:
        return GuestCpu(model=cpu.model, features=features), ()
    if accel == "tcg":
        vendor = "GenuineIntel" if threads > 1 else None
        emulated = GuestCpu(model="max", vendor=vendor, features=features)
        return emulated, ("CPU model max: TCG has no host model",) if cpu.model == "host" else ()
    is_amd = host.kvm is not None and host.kvm.vendor == "amd"
    is_said = any(feature[1:] == "topoext" for feature in cpu.features)
    if threads == 1 or not is_amd or is_said:
        return GuestCpu(model=cpu.model, features=features), ()
    with_threads = GuestCpu(model=cpu.model, features=(*features, "+topoext"))
    return with_threads, ("CPU feature topoext: without it an AMD guest sees no threads",)
