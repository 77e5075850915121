"""The machine's identity and kind, and what runs it."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.qemu.passed_files import needs_bridge_helper


def arguments(plan: Plan) -> list[str]:
    """Return the name (it names threads, too), the machine, the accelerator, the sandbox."""
    accel = "tcg,thread=multi" if plan.accel == "tcg" else plan.accel
    return [
        *("-name", f"guest={plan.name},debug-threads=on"),
        *("-uuid", plan.uuid),
        *("-machine", ",".join(_machine(plan))),
        *("-accel", accel),
        *("-no-user-config", "-nodefaults"),
        *_clock(plan),
        *_boot(plan),
        *_overcommit(plan),
        *_user(plan),
        *_sandbox(plan),
    ]


def _machine(plan: Plan) -> list[str]:
    """Return the machine type with its properties (``-machine q35,help`` lists them)."""
    spec, hardware = plan.spec, plan.hardware
    is_microvm = spec.machine.type == "microvm"
    words = [spec.machine.type, "usb=off", "dump-guest-core=off"]
    if is_microvm:
        # The console is a device of its own; the firmware needs no option ROMs.
        words += ["isa-serial=off", "x-option-roms=off", "rtc=on", "pic=off", "pit=off"]
    else:
        words += ["vmport=off", f"hpet={_on_off(spec.clock.hpet)}"]
    if spec.boot.firmware == "uefi":
        words += ["pflash0=pflash0-format", "pflash1=pflash1-format"]
    if spec.boot.secure_boot:
        words.append("smm=on")
    if hardware.irqchip is not None:
        words.append(f"kernel-irqchip={hardware.irqchip}")
    if not spec.memory.merge:
        words.append("mem-merge=off")
    if hardware.security is not None:
        words.append("confidential-guest-support=lsec0")
    if hardware.interface.l3 is not None:
        words += ["smp-cache.0.cache=l3", f"smp-cache.0.topology={hardware.interface.l3}"]
    return words


def _clock(plan: Plan) -> list[str]:
    """Return the real-time clock; a guest's time stands still with it (``clock=vm``)."""
    rtc = [f"base={plan.hardware.clock.offset}"]
    if plan.spec.clock.rtc_track == "guest":
        rtc.append("clock=vm")
    if plan.spec.clock.rtc_ticks == "catchup":
        rtc.append("driftfix=slew")
    return ["-rtc", ",".join(rtc)]


def _boot(plan: Plan) -> list[str]:
    """Return the order of start: nothing is started that has no place in it, as libvirt has it."""
    menu = ["menu=on"] if plan.spec.boot.menu else []
    return ["-boot", ",".join([*menu, "strict=on"])]


def _overcommit(plan: Plan) -> list[str]:
    words = []
    if plan.spec.memory.locked:
        words += ["-overcommit", "mem-lock=on"]
    if plan.hardware.interface.cpu_pm:
        words += ["-overcommit", "cpu-pm=on"]
    return words


def _user(plan: Plan) -> list[str]:
    user = plan.spec.machine.user
    if user is None:
        return []
    return ["-run-with", f"user={user}"] if plan.hardware.has_run_with else ["-runas", user]


def _sandbox(plan: Plan) -> list[str]:
    """Return the sandbox: unneeded system calls are denied (``-sandbox``, QEMU's invocation page).

    The port of a bridge that nobody opens is made by the setuid ``qemu-bridge-helper`` of QEMU.
    Another user is taken on before the filter is in force.
    """
    if not plan.spec.machine.sandbox:
        return []
    spawn = "allow" if needs_bridge_helper(plan) else "deny"
    denied = f"elevateprivileges={spawn},spawn={spawn},resourcecontrol=deny"
    return ["-sandbox", f"on,obsolete=deny,{denied}"]


def _on_off(flag: bool) -> str:  # noqa: FBT001 -- it is the value that is written
    return "on" if flag else "off"
