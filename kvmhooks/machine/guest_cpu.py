"""The guest's CPU: its model, its interface to the hypervisor, and the features that it offers."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kvmhooks.machine.qemu_features import HYPERV, SMP_CACHE, FeatureUse
from kvmhooks.spec.model import VmSpec

WHOLE: Final = frozenset({"host", "max"})
"""Models that are whatever the host, or the accelerator, has."""

SPINLOCK_RETRIES: Final = 8191
"""The number in Microsoft's own hypervisor, and QEMU's documentation (docs/system/i386/hyperv.rst).
"""

_NEEDS_NESTING: Final = frozenset({"evmcs", "emsr_bitmap", "tlbflush-direct"})
"""For a guest that runs Hyper-V itself on Intel's VMX: of no use to others, and evmcs is refused
without VMX."""


@frozen(kw_only=True)
class GuestCpu:
    """The CPU model that the guest sees."""

    model: str
    vendor: str | None = None
    """A vendor other than the model's own."""
    features: tuple[str, ...] = ()
    """``+name`` and ``-name``, in the spec's order."""


@frozen(kw_only=True)
class CpuInterface:
    """The paravirtual features; None is QEMU's own default."""

    migratable: bool | None = None
    pmu: bool | None = None
    host_caches: bool | None = None
    """True: the host's own; False: QEMU's, with an L3."""
    l3: str | None = None
    """The level of the topology whose CPUs share an L3 (``smp-cache``)."""
    hidden: bool = False
    hint_dedicated: bool | None = None
    poll_control: bool | None = None
    pv_ipi: bool | None = None
    pv_eoi: bool | None = None
    pv_spinlocks: bool | None = None
    cpu_pm: bool = False
    hyperv: tuple[str, ...] = ()
    """Hyper-V's interfaces, by libvirt's names; ``stimer-direct`` belongs to ``stimer``."""


def choose_interface(spec: VmSpec, features: FeatureUse, *, accel: str, model: str) -> CpuInterface:
    """Return the features of ``[cpu]`` that there are under ``accel`` for a CPU ``model``."""
    cpu = spec.cpu
    is_kvm = accel == "kvm"
    dedicated = cpu.hint_dedicated
    if dedicated is None and cpu.placement == "dedicated":
        dedicated = True
    asked = {
        "hint_dedicated": dedicated,
        "poll_control": cpu.poll_control,
        "pv_ipi": cpu.pv_ipi,
        "pv_eoi": cpu.pv_eoi,
        "pv_spinlocks": cpu.pv_spinlocks,
    }
    if not is_kvm:
        for name, choice in {"hidden": cpu.hidden, "cpu_pm": cpu.cpu_pm, **asked}.items():
            if choice and getattr(cpu, name):
                features.leave_out(f"cpu.{name}", "it is KVM's")
        asked = dict.fromkeys(asked)
    return CpuInterface(
        migratable=_if_whole(cpu.migratable, model, features),
        pmu=_pmu(spec),
        host_caches=_caches(spec, features, is_host=is_kvm and model == "host"),
        l3=cpu.l3 if cpu.l3 is not None and features.has(SMP_CACHE, "cpu.l3") else None,
        hidden=cpu.hidden and is_kvm,
        cpu_pm=cpu.cpu_pm and is_kvm,
        hyperv=_hyperv(spec, features, is_kvm=is_kvm),
        **asked,
    )


def _pmu(spec: VmSpec) -> bool | None:
    """Return the key's value, or the last of the features that names it."""
    switches = [feature[0] == "+" for feature in spec.cpu.features if feature[1:] == "pmu"]
    return switches[-1] if switches and spec.cpu.pmu is None else spec.cpu.pmu


def _if_whole(asked: bool | None, model: str, features: FeatureUse) -> bool | None:  # noqa: FBT001
    """Return the key's value for QEMU's ``host`` and ``max``: only they have the property
    ``migratable`` (target/i386/cpu.c).
    """
    if asked is not None and model not in WHOLE:
        features.leave_out("cpu.migratable", f"the model {model} shows what it shows")
        return None
    return asked


def _caches(spec: VmSpec, features: FeatureUse, *, is_host: bool) -> bool | None:
    if spec.cpu.caches == "host" and not is_host:
        features.leave_out("cpu.caches", "the host's are shown with KVM and the model host only")
        return None
    return {"auto": None, "host": True, "emulated": False}[spec.cpu.caches]


def _hyperv(spec: VmSpec, features: FeatureUse, *, is_kvm: bool) -> tuple[str, ...]:
    wanted = spec.cpu.hyperv == "full" or (spec.cpu.hyperv == "auto" and spec.guest.os == "windows")
    if not wanted or not is_kvm:
        if spec.cpu.hyperv == "full":
            features.leave_out("cpu.hyperv", "it is KVM's")
        return ()
    is_nesting = "+vmx" in spec.cpu.features
    return tuple(
        name
        for name, feature in HYPERV.items()
        if (is_nesting or name not in _NEEDS_NESTING) and features.has(feature, "cpu.hyperv")
    )
