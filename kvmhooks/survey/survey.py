"""The survey of a host: the one place where an inventory is taken.

Every verb and every path of kvm-launch plans on what ``take`` gives, so all give one answer.
It starts no guest, wakes no daemon and loads no library of libvirt's, but where a libvirtd is named
that is to run the VM. Only ``try_kvm`` and ``ask_cpus``, for a start, try KVM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from attrs import evolve

from kvmhooks.errors import HostError, LaunchError, SpecError
from kvmhooks.host.model import PLANNED, Host
from kvmhooks.host.read import read
from kvmhooks.inventory.hypervisor import NOT_TRIED, Hypervisor, has_kvm
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding, merged
from kvmhooks.isolate.system.system import System
from kvmhooks.kvm.verdict import MEMORY, Verdict, recall, remember
from kvmhooks.machine.cpu_model import asked_of_host
from kvmhooks.machine.target import OLDEST, Target
from kvmhooks.placement.plan import identity_of, parts_of
from kvmhooks.placement.request import dedicated_of
from kvmhooks.qemu import emulator
from kvmhooks.qemu.run_dir import base_of, made, own_base, private_directory
from kvmhooks.spec.model import VmSpec
from kvmhooks.survey.administrator import administration_of, without_effect
from kvmhooks.survey.sources import Sources

_TELLING: Final = ("run/kvmhooks", "run/libvirt/qemu", "etc/libvirt/qemu")
"""The directories of a host of which one is there where VMs are."""


def take(sources: Sources, *specs: VmSpec, parts: Sequence[str] = ()) -> Inventory:
    """Take the inventory on which ``specs`` are planned, or any domain if there are none.

    ``parts`` of the host are looked at besides (``host.read``). Raises
    ``KvmhooksError`` for a source that cannot be read, but where only root may read it: that is
    among the warnings.
    """
    hypervisors: dict[str, Hypervisor] = {}
    needed = [part for spec in specs for part in parts_of(spec)] or PLANNED
    host = read(sources.host, tuple(dict.fromkeys((*needed, *parts))))
    for spec in specs:
        hypervisors[spec.name] = _hypervisor_of(sources, spec, host)
    default = next(iter(hypervisors.values()), Hypervisor())
    inventory = Inventory(host=host, hypervisor=default, hypervisors=hypervisors)
    return _with_holdings(inventory, sources, specs)


def refresh(inventory: Inventory, sources: Sources, *specs: VmSpec) -> Inventory:
    """Take an inventory anew, with the programs and the verdict on KVM that are known."""
    parts = tuple(dict.fromkeys(part for spec in specs for part in parts_of(spec))) or PLANNED
    again = evolve(inventory, host=read(sources.host, parts))
    return _with_holdings(again, sources, specs)


def look_again(inventory: Inventory, sources: Sources, *specs: VmSpec) -> Inventory:
    """Return an inventory with what VMs hold by now: for a start, while nobody else plans."""
    if any(spec.security.type != "none" for spec in specs):
        cgroup = read(sources.host, ("cgroup",)).cgroup  # it counts the keys in use
        inventory = evolve(inventory, host=evolve(inventory.host, cgroup=cgroup))
    return _with_holdings(inventory, sources, specs)


def try_kvm(inventory: Inventory, sources: Sources, spec: VmSpec) -> Inventory:
    """Return an inventory with a verdict on KVM for a VM that is to start, by a trial if need be.

    The verdict is kept for this boot, beside the run directories. Raises ``LaunchError`` when it
    cannot be kept there.
    """
    known = inventory.hypervisor_of(spec.name)
    if not _is_open(spec, inventory.host, known):
        return inventory
    from kvmhooks.kvm.probe import probe  # noqa: PLC0415 -- rarely needed: once per boot

    program, base = emulator.find(spec), base_of(sources.run_dir)
    verdict = recall(program, base)
    if verdict is None:
        directory = private_directory(base)
        try:
            verdict = probe(program)
            if verdict.is_lasting:
                with made(base / MEMORY):
                    remember(verdict, program, directory)
        finally:
            os.close(directory)
    judged = _judged(known, verdict)
    if sources.uri is not None:
        settled = _settled(spec, inventory.host, judged)
        judged = judged.on(_target_of(sources, settled, inventory.host))
    hypervisors = {**inventory.hypervisors, spec.name: judged}
    warnings = tuple(each for each in inventory.warnings if each != _untried(spec))
    return evolve(inventory, hypervisors=hypervisors, warnings=warnings)


def ask_cpus(inventory: Inventory, sources: Sources, spec: VmSpec) -> Inventory:
    """Return an inventory with QEMU's answers under KVM on what a VM that is to start asks for.

    They are kept for this boot, as the verdict on KVM. A QEMU that does not answer is told of, and
    the VM planned as if it had. Raises ``LaunchError`` when they cannot be kept.
    """
    known = inventory.hypervisor_of(spec.name)
    if not _is_unasked(spec, inventory.host, known):
        return inventory
    from kvmhooks.kvm import cpus  # noqa: PLC0415 -- rarely needed: once per boot

    program, base = emulator.find(spec), base_of(sources.run_dir)
    modules = _modules(inventory.host)
    others = tuple(each for each in inventory.warnings if each != _unasked(spec))
    answers = cpus.recall(program, base, modules)  # another VM's start may just have asked
    if answers is None:
        try:
            answers = cpus.ask_under_kvm(program)
        except LaunchError as error:
            keys = ", ".join(asked_of_host(spec))
            told = f"{spec.name}: {keys}: KVM could not be asked: {error}: planned as if it works"
            return evolve(inventory, warnings=(*others, told))
        directory = private_directory(base)
        try:
            with made(base / cpus.MEMORY):
                cpus.remember(answers, program, directory, modules)
        finally:
            os.close(directory)
    target = evolve(known.target, answers={**known.target.answers, "kvm": answers})
    hypervisors = {**inventory.hypervisors, spec.name: known.on(target)}
    return evolve(inventory, hypervisors=hypervisors, warnings=others)


def _is_unasked(spec: VmSpec, host: Host, hypervisor: Hypervisor) -> bool:
    """Return whether a VM asks for what nobody has asked its QEMU under KVM."""
    accel = spec.machine.accel
    is_kvm = has_kvm(host) and (accel == "kvm" or (accel == "auto" and hypervisor.kvm != "fails"))
    return is_kvm and "kvm" not in hypervisor.target.answers and any(asked_of_host(spec))


def _unasked(spec: VmSpec) -> str:
    keys = ", ".join(asked_of_host(spec))
    return f"{spec.name}: {keys}: {NOT_TRIED} on this boot: planned as if it works"


def _modules(host: Host) -> Mapping[str, str] | None:
    return None if host.kvm is None else host.kvm.module_parameters


def _is_open(spec: VmSpec, host: Host, hypervisor: Hypervisor) -> bool:
    """Return whether a VM would have KVM, and nobody has tried it."""
    return spec.machine.accel == "auto" and has_kvm(host) and hypervisor.kvm == "not tried"


def _untried(spec: VmSpec) -> str:
    return f"{spec.name}: machine.accel: auto, and {NOT_TRIED} on this boot: planned as if it works"


def _with_holdings(inventory: Inventory, sources: Sources, specs: Sequence[VmSpec]) -> Inventory:
    """Return an inventory with the limits, and with what VMs hold and will hold."""
    host = inventory.host
    administration = administration_of(sources, [spec.name for spec in specs])
    told = [*(f"{sources.host}: {warning}" for warning in host.warnings), *administration.warnings]
    told += without_effect(administration.limits, host)
    holdings, expected = sources.claims or (), tuple[Holding, ...]()
    if sources.claims is None and sources.system is not None:
        holdings, expected, more = _held_here(sources, sources.system, host, specs)
        told += more
    if sources.is_live:
        told += [
            _untried(spec)
            for spec in specs
            if _is_open(spec, host, inventory.hypervisor_of(spec.name))
        ]
    if sources.is_live and sources.qemu is None:
        told += [
            _unasked(spec)
            for spec in specs
            if _is_unasked(spec, host, inventory.hypervisor_of(spec.name))
        ]
    return evolve(
        inventory,
        holdings=holdings,
        expected=expected,
        limits=administration.limits,
        defaults=administration.defaults,
        policies=administration.policies,
        warnings=tuple(told),
    )


def _held_here(
    sources: Sources, system: System, host: Host, specs: Sequence[VmSpec]
) -> tuple[tuple[Holding, ...], tuple[Holding, ...], list[str]]:
    """Return what VMs hold here, what those will that start with it, and what is wrong."""
    if not (sources.is_live or any(map(system.has, _TELLING))):
        return (), (), []
    from kvmhooks.survey import records, running  # noqa: PLC0415 -- few captured hosts have VMs

    told: list[str] = []
    found: list[Holding] = []
    try:
        found += running.claimed(sources.registry(system))
        domains, problems = running.running_domains(system, host)
        found += domains
        told += problems
    except HostError as error:
        if sources.is_readable:
            raise
        told.append(f"{error}; planned as if no VM of root's ran")
    if sources.is_live:
        own = {identity_of(spec) for spec in specs}
        launched, problems = records.launched(sources.run_dir, own_base(), System(), own)
        found += launched
        told += [*problems, *_apart(sources, specs)]
    starting = running.autostarted(system)
    if not (starting or sources.counts_defined):
        return merged(found), (), told
    defined, problems = running.defined_domains(system, host, merged(found))
    if sources.counts_defined:
        return merged([*found, *defined]), (), [*told, *problems]
    known = {holding.uuid for holding in found if holding.uuid}
    expected = [each for each in defined if each.name in starting and each.uuid not in known]
    return merged(found), tuple(expected), told


def _apart(sources: Sources, specs: Sequence[VmSpec]) -> list[str]:
    """Return a sentence for VMs with CPUs of their own that start where others do not look.

    Root's exclusive CPUs are claimed, which everybody sees.
    """
    base, own = sources.run_dir, own_base()
    named = [
        spec.name
        for spec in specs
        if dedicated_of(spec) and not (spec.isolation.exclusive and os.geteuid() == 0)
    ]
    if base is None or not named or base.absolute() == own:
        return []
    known = f"{base}" if own is None else f"{base} and {own}"
    others = f"others do not know {', '.join(named)}: two may get one CPU"
    return [f"--run-dir: of kvm-launch's VMs those below {known} are known, and {others}"]


def _hypervisor_of(sources: Sources, spec: VmSpec, host: Host) -> Hypervisor:
    """Return what will run a VM, and what is known of KVM under it."""
    known = Hypervisor(kvm="not tried")
    if not sources.is_live:
        known = evolve(known, kvm="assumed") if sources.assumes_kvm else known
    elif spec.machine.accel == "auto" and has_kvm(host):
        with suppress(LaunchError, SpecError, OSError):  # no QEMU here, or no directory of ours
            verdict = recall(emulator.find(spec), base_of(sources.run_dir))
            known = known if verdict is None else _judged(known, verdict)
    return known.on(_target_of(sources, _settled(spec, host, known), host))


def _settled(spec: VmSpec, host: Host, known: Hypervisor) -> VmSpec:
    """Return a VM with the accelerator that it will have, as libvirt is to be asked for it."""
    if spec.machine.accel != "auto":
        return spec
    accel, _ = known.accelerator("auto", host)
    return evolve(spec, machine=evolve(spec.machine, accel=accel))


def _judged(known: Hypervisor, verdict: Verdict) -> Hypervisor:
    return evolve(known, kvm="works" if verdict.is_usable else "fails", reason=verdict.evidence)


def _recalled(sources: Sources, spec: VmSpec, host: Host, target: Target) -> Target:
    """Return a target with QEMU's answers under KVM, as far as a start has left them."""
    if not any(asked_of_host(spec)) or not has_kvm(host):
        return target
    from kvmhooks.kvm import cpus  # noqa: PLC0415 -- few VMs ask for what depends on it

    with suppress(LaunchError, SpecError, OSError):  # no QEMU here, or no directory of ours
        answers = cpus.recall(emulator.find(spec), base_of(sources.run_dir), _modules(host))
        if answers is not None:
            return evolve(target, answers={**target.answers, "kvm": answers})
    return target


def _target_of(sources: Sources, spec: VmSpec, host: Host) -> Target:
    """Return the target that was given, else the one that is installed here, for this VM."""
    has_libvirt = sources.has_libvirt or sources.capabilities is not None
    if sources.libvirt is not None:
        has_libvirt = sources.libvirt != (0, 0)
    if sources.is_live and sources.qemu is None:
        from kvmhooks.survey.programs_here import target_for  # noqa: PLC0415 -- of this machine

        target = _recalled(sources, spec, host, target_for(spec, has_libvirt=has_libvirt))
    else:
        target = evolve(OLDEST, qemu=sources.qemu or OLDEST.qemu)
    if not has_libvirt:
        return evolve(target, libvirt=None)
    words = sources.capabilities
    if sources.uri is not None:
        from kvmhooks.libvirt.capabilities import ask  # noqa: PLC0415 -- where libvirt is asked
        from kvmhooks.libvirt.connection import connected  # noqa: PLC0415 -- as above

        with connected(sources.uri) as connection:
            words = ask(connection, spec)
    return evolve(target, libvirt=sources.libvirt or target.libvirt, domain=words)
