"""Improvements of the vCPUs: their pins, their model and what it shows them."""

from __future__ import annotations

from kvmhooks.libvirt.edit.editor import New, Target
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.cpu import cpu_set
from kvmhooks.libvirt.tuning.devices import iothreads_after
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.placement.model import Plan
from kvmhooks.values import CpuSet, union


def pins(situation: Situation) -> None:
    """Pin each vCPU, the emulator and each iothread, as planned.

    Shared vCPUs that may run on every CPU of the host need none, and with one CPU for each they
    would look as if they owned it.
    """
    if situation.stays:
        return
    root = situation.root
    plan = situation.plan
    is_everywhere = all(pin.cpus >= situation.host.online for pin in plan.vcpus)
    is_narrow = not situation.is_dedicated and all(len(pin.cpus) == 1 for pin in plan.vcpus)
    has_pins = root.find("cputune/vcpupin") is not None
    if not situation.kept_pins and (is_narrow or (is_everywhere and not has_pins)):
        return
    why = "close together, and their memory with them"
    if situation.is_dedicated:
        why = "a CPU for each vCPU, guest siblings on host siblings"
    if not situation.kept_pins:
        _vcpus(situation, why)
    own = union(situation.pins.values()) if situation.is_dedicated else CpuSet()
    _others(situation, own)


def _vcpus(situation: Situation, why: str) -> None:
    editor, root = situation.editor, situation.root
    vcpu = root.find("vcpu")
    if vcpu is not None and vcpu.get("placement") == "auto":
        editor.set(vcpu, "placement", "static", "numad would undo the pins")
    present = {pin.get("vcpu"): pin for pin in root.all("cputune/vcpupin")}
    has_set = vcpu is not None and vcpu.get("placement") != "auto" and vcpu.get("cpuset")
    default = cpu_set(vcpu, "cpuset") if vcpu is not None and has_set else None
    for pin in situation.plan.vcpus:
        found = present.get(str(pin.vcpu))
        if found is None and pin.cpus == default:
            continue
        if found is None:
            attributes = {"vcpu": str(pin.vcpu), "cpuset": str(pin.cpus)}
            editor.add(situation.child("cputune", why), New("vcpupin", attributes), why)
        elif cpu_set(found, "cpuset") != pin.cpus:
            editor.set(found, "cpuset", str(pin.cpus), why)


def _others(situation: Situation, own: CpuSet) -> None:
    """Pin whatever else QEMU runs, apart from the vCPUs' own CPUs."""
    root, plan = situation.root, situation.plan
    why = "apart from the vCPUs" if own else "close to the vCPUs"
    found = root.find("cputune/emulatorpin")
    _pin(situation, found, New("emulatorpin"), plan.emulator - own, why)
    tunes = situation.editor.children(root, "cputune")
    pins = [pin for tune in tunes for pin in situation.editor.children(tune, "iothreadpin")]
    present = {pin.get("iothread"): pin for pin in pins}
    planned = {pin.id: pin.cpus for pin in plan.iothreads}
    for iothread in sorted(iothreads_after(situation.editor)):
        cpus = planned.get(iothread, plan.emulator) - own
        new = New("iothreadpin", {"iothread": str(iothread)})
        _pin(situation, present.get(str(iothread)), new, cpus, why)


def _pin(situation: Situation, found: Target | None, new: New, cpus: CpuSet, why: str) -> None:
    """Set the CPUs of the pin that was found, or else of a new one."""
    if not cpus:
        return
    if found is None:
        new.attributes["cpuset"] = str(cpus)
        situation.editor.add(situation.child("cputune", why), new, why)
    elif situation.keep_pins:
        return
    elif isinstance(found, New) or cpu_set(found, "cpuset") != cpus:
        situation.editor.set(found, "cpuset", str(cpus), why)


def model(situation: Situation) -> None:
    """Give the host's CPU, with its threads and caches, where the domain names none.

    Without ``<cpu>`` QEMU's guest has a CPU of 2003. A model that somebody chose is kept: it may
    be what the guest can migrate with. ``topoext`` is what an AMD guest sees threads by
    (``kvmhooks.machine.cpu_model``); the host's caches are worth seeing where the vCPUs do not
    move between them.
    """
    editor, root = situation.editor, situation.root
    if not situation.is_kvm or situation.is_own:
        return
    cpu = root.find("cpu")
    why = "the host's own CPU, not QEMU's model of 2003"
    mode = None if cpu is None else cpu.get("mode")
    if names_no_model(cpu):
        target = situation.child("cpu", why)
        editor.set(target, "mode", "host-passthrough", why)
        if target.get("check") is None:
            editor.set(target, "check", "none", why)
        mode = "host-passthrough"
    if mode not in {"host-passthrough", "maximum"}:
        return
    target = situation.child("cpu", why)
    plan = situation.placed
    has_shape = not situation.stays or root.find("cpu/topology") is not None
    if plan is not None and has_shape and _needs_topoext(plan):
        named = [each.get("name") for each in editor.children(target, "feature")]
        if "topoext" not in named:
            attributes = {"policy": "require", "name": "topoext"}
            editor.add(target, New("feature", attributes), "an AMD guest sees its threads by it")
    if situation.is_dedicated and not editor.children(target, "cache"):
        cache = New("cache", {"mode": "passthrough"})
        editor.add(target, cache, "pinned vCPUs schedule better when they see the host's caches")


def _needs_topoext(plan: Plan) -> bool:
    return "+topoext" in plan.cpu.features and plan.topology.threads > 1


def names_no_model(cpu: Element | None) -> bool:
    """Return whether a domain leaves the model of its CPU to QEMU."""
    return cpu is None or not (cpu.get("mode") or cpu.get("match") or cpu.find("model"))


def topology(situation: Situation) -> None:
    """Give the planned sockets, cores and threads, where the domain names none."""
    root = situation.root
    if root.find("cpu/topology") is not None or situation.kept_pins or situation.stays:
        return
    plan = situation.plan
    if root.find("cpu") is None and not situation.is_kvm:
        return
    shape = plan.topology
    if (shape.sockets, shape.dies, shape.threads) == (situation.vcpus, 1, 1):
        return  # libvirt's default: a socket for each vCPU
    why = "cores and threads of few sockets, as the host has them"
    attributes = {
        level: str(getattr(shape, level)) for level in ("sockets", "dies", "cores", "threads")
    }
    situation.editor.add(situation.child("cpu", why), New("topology", attributes), why)
