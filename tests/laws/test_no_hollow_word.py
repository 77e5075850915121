"""No word of ``vm.toml`` is hollow: each does something, or is refused, or is told of.

Every field of the spec's classes is found by walking them and given other values in the golden
cases, for both launchers; what becomes of the VM is then compared as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import attrs
import pytest

from kvm_launch.host import limits
from kvm_launch.prepare import cloud_init
from kvm_launch.prepare.helper_spec import HelperPlace, Program, helpers_of
from kvm_launch.prepare.images import creation
from kvm_launch.prepare.persistent_state import tpm_state
from kvm_launch.prepare.shared_memory import owners_of
from kvm_launch.spawn.sandbox import writable
from kvmhooks.errors import PlanError, Problem, SpecError
from kvmhooks.host import Host
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.firmware import firmware_of
from kvmhooks.placement import Plan, Target, claim, plan, scheduler_of
from kvmhooks.placement.launchers import KVM_LAUNCH, LIBVIRT, foreign
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.device import device_class, hints_of
from kvmhooks.spec.enabling import unenabled
from kvmhooks.spec.forms import RANGES, Firmware, HugePages, VfChoice
from kvmhooks.spec.present import DEVICES
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.spec.structure import is_key
from kvmhooks.values import ByteSize, CpuSet, PciAddress
from tests.golden.cases import CASES, TARGETS, golden_host, golden_vm
from tests.laws.test_every_key import KEYS

LEAST: Final = """name = "a"
cpu.vcpus = 4
memory.size = "2GiB"
disk = [{ path = "d" }]
net = [{ type = "tap", device = "tap0" }]
"""

Launcher = Literal["kvm-launch", "libvirt"]
Place = tuple[str | int, ...]
"""The way to a field: names of fields, and indices of tuples."""

ELSEWHERE: Final = {
    "run.hang_timeout": "kvm_launch: watch.feel_pulse (tests/integration/test_launch_endings.py)",
    "run.ready": "kvm_launch: tell.status (tests/integration/test_launch_verbs.py)",
    "run.restart": "kvm_launch: life.restart (tests/unit/launcher/test_restart.py)",
    "run.restart_delay": "kvm_launch: life.restart (tests/unit/launcher/test_restart.py)",
    "shutdown.timeout": "both: kvm_launch's life.stop (tests/integration/test_launch_endings.py)",
    "guest.report": "both: kvm_launch's tell.outcome (tests/integration/test_launch.py)",
    "disk.encryption.secret": "libvirt's (tests/golden); kvm-launch has the key beside it",
    "disk.encryption.key": "kvm-launch's (tests/golden); libvirt has the secret beside it",
    "disk.passed": "kvm-launch: prepare.disks (tests/integration/test_launch_images.py); libvirt "
    "passes none",
}  # fmt: skip
"""Keys that change nothing that is written down: what carries them out, and where that is tried."""

TEXTS: Final = {
    "VmName": "other",
    "Uuid": "6f5e6d5c-4b3a-4291-8807-f6e5d4c3b2aa",
    "MacAddress": "52:54:00:00:00:7f",
    "InterfaceName": "other0",
    "CpuFeature": "+pcid",
    "CpuModel": "EPYC",
    "MachineType": "pc-q35-8.0",
    "UserName": "nobody",
    "Tag": "other",
    "SharedName": "other",
    "Serial": "OTHER",
    "Hexadecimal": "0x70007",
    "IpAddress": "127.0.0.9",
    "UsbId": "1234:5678",
    "PciId": "8086:0001",
    "PhysicalName": "0000:c0:00.1",
    "MdevName": "other-1",
    "BlockName": "nvme9n1",
    "governor": "schedutil",
    "epp": "power",
    "scheduler": "bfq",
    "vhost": "keep",
    "str": "other",
}
"""Another text of each form."""


def others(hint: Any, value: Any) -> Iterator[Any]:  # noqa: C901, PLR0912 -- a case for each type
    """Yield other values of a type than the one that is there."""
    origin, name = get_origin(hint), getattr(hint, "__name__", "")
    if hint == HugePages:
        yield from (each for each in (False, ByteSize(2 << 20), ByteSize(1 << 30)) if each != value)
    elif hint == VfChoice:
        yield from (each for each in ("auto", 0, 2) if each != value)
    elif hint in (Firmware, Path):
        yield Path("/other/file")
    elif origin is Literal:
        yield from (each for each in get_args(hint) if each != value)
    elif origin is tuple:
        yield from _tuples(get_args(hint)[0], value)
    elif type(None) in get_args(hint):
        for kind in get_args(hint):
            yield from () if kind is type(None) else others(kind, value)
        if value is not None:
            yield None
    elif hint is bool:
        yield from ([True, False] if value is None else [not value])
    elif hint is ByteSize:
        yield from (ByteSize(1 << 30), ByteSize(64 << 20)) if not value else (
            ByteSize(int(value) * 2), ByteSize(int(value) // 2))  # fmt: skip
    elif hint is CpuSet:
        yield from (each for each in map(CpuSet.parse, ("0", "0-1", "1")) if each != value)
    elif hint is PciAddress:
        yield from map(PciAddress.parse, ("0000:b1:00.0", "0000:77:00.0"))
    elif hint in RANGES:
        least, most = RANGES[hint]
        number = value if isinstance(value, int) else 0  # or a word
        yield from {least, min(least + 1, most), min(number * 2 or least, most)} - {value}
    elif name in TEXTS:
        yield TEXTS[name]
    else:
        raise AssertionError(hint)


def _tuples(item: Any, value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield a tuple with one more, where an item can be made without knowing more, and fewer."""
    if not attrs.has(item):
        yield (*value, *(each for each in list(others(item, None))[:1]))
    if value:
        yield value[:-1]


def places(table: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield each field of a spec with its type, those of tables in it too."""
    hints = hints_of(type(table))
    for field in attrs.fields(type(table)):
        if not is_key(field):
            continue
        value = getattr(table, field.name)
        if value is None and not at and field.name in DEVICES:
            value = device_class(field.name)()
        if attrs.has(type(value)):
            yield from places(value, (*at, field.name))
            continue
        is_table = any(attrs.has(kind) for kind in get_args(hints[field.name]))
        if field.name != "profile" and not (value is None and is_table):
            yield (*at, field.name), hints[field.name]
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            if attrs.has(type(item)):
                yield from places(item, (*at, field.name, index))


def with_value(table: Any, place: Place, value: Any) -> Any:
    """Return the spec, or a table of it, with another value at a place."""
    first, *rest = place
    if not rest and isinstance(first, str):
        return attrs.evolve(table, **{first: value})
    if isinstance(first, int):
        return (*table[:first], with_value(table[first], tuple(rest), value), *table[first + 1 :])
    inner = getattr(table, first)
    if inner is None:
        inner = device_class(first)()
    return attrs.evolve(table, **{first: with_value(inner, tuple(rest), value)})


def key_of(place: Place) -> str:
    """Return the key of a place, as the manual has it."""
    return ".".join(step for step in place if isinstance(step, str))


def target_of(case: str, launcher: Launcher) -> Target:
    target = TARGETS[case.partition("+")[2]]
    return attrs.evolve(
        target, libvirt=None if launcher == KVM_LAUNCH else target.libvirt or (9, 0)
    )


def unfit(spec: VmSpec, launcher: Launcher) -> list[Problem]:
    """Return what a launcher does not carry out."""
    limited = limits.problems(spec.tuning) if launcher == KVM_LAUNCH else ()
    return [*foreign(spec, launcher), *limited]


def fitting(spec: VmSpec, launcher: Launcher) -> VmSpec:
    """Return a VM without the keys that a launcher does not carry out."""
    if spec.memory.path is not None and launcher == LIBVIRT:
        spec = with_value(spec, ("memory", "backend"), "memfd")
    wrong = unfit(spec, launcher)
    while wrong:  # without one key another may mean nothing
        steps = re.findall(r"[^.\[\]]+", wrong[0].at)
        place: Place = tuple(int(step) if step.isdigit() else step for step in steps)
        default = attrs.fields_dict(type(_at(spec, place[:-1])))[str(place[-1])].default
        assert _at(spec, place) != default, (spec.name, str(wrong[0]))
        spec = with_value(spec, place, default)
        wrong = [*unfit(spec, launcher), *unenabled(spec)]
    assert not [*unfit(spec, launcher), *inconsistencies(spec)], spec.name
    return spec


def outcome(spec: VmSpec, host: Host, target: Target, launcher: Launcher) -> Any:
    """Return all that a launcher makes of a VM, or why it is refused."""
    wrong = [*inconsistencies(spec), *unfit(spec, launcher)]
    if wrong:
        return [*map(str, wrong)]
    try:
        made = plan(spec, host, target=target)
        written = (_by_libvirt if launcher == LIBVIRT else _by_kvm_launch)(made)
        return (*written, made.warnings, *_beforehand(made))
    except (PlanError, SpecError) as error:
        return str(error)


def _by_libvirt(made: Plan) -> tuple[Any, ...]:
    return domain_xml(made), json.dumps(claim(made, driver="qemu").to_json())


def _by_kvm_launch(made: Plan) -> tuple[Any, ...]:
    spec = made.spec
    groups = ("emulator", *(f"vcpu{pin.vcpu}" for pin in made.vcpus))
    groups += tuple(f"iothread{pin.id}" for pin in made.iothreads)
    limited = limits.limits_of(spec.tuning, groups, str)
    programs = {name: Program(path=Path("/bin", name)) for name in ("virtiofsd", "swtpm", "passt")}
    programs["virtiofsd"] = attrs.evolve(
        programs["virtiofsd"], features=frozenset({"separate-options"})
    )
    users: dict[str, Any] = {str(each.user): each.user for each in spec.helper}
    place = HelperPlace(
        programs=programs, user=None, users=users, is_root=True, state=tpm_state(spec)
    )
    return (
        qemu_argv(made),
        json.dumps(claim(made).to_json()),
        limited,
        helpers_of(spec, place),
        writable(spec),
        firmware_of(spec),
        None if spec.shared_memory is None else owners_of(spec, None),
        (made.vcpus, made.emulator, made.iothreads, scheduler_of(made)),
    )


def _beforehand(made: Plan) -> tuple[Any, ...]:
    """Return what kvm-launch makes for either: images, and the seed of cloud-init."""
    spec = made.spec
    commands = [creation(each, str(each.path), int(each.size or 0)) for each in spec.image]
    try:
        cloud_init.check(spec, None)
    except SpecError as error:
        return commands, str(error)
    return commands, ""


@cache
def tried(launcher: Launcher) -> dict[str, bool]:
    """Return for each key whether another value of it makes a difference in a golden case."""
    found: dict[str, bool] = {}
    for vm, place in CASES:
        if launcher == LIBVIRT and "microvm" in golden_vm(vm).machine.type:
            continue
        spec, host = golden_vm(vm), golden_host(place.partition("+")[0])
        spec = fitting(attrs.evolve(spec, applied=(), left_out=()), launcher)
        target = target_of(place, launcher)
        before = outcome(spec, host, target, launcher)
        if isinstance(before, str):
            continue  # a profile gives way there, which this one has no more
        for at, hint in places(spec):
            values = list(others(hint, _at(spec, at)))
            is_done = found.get(key_of(at), False) or {key_of(at)} & ELSEWHERE.keys() & found.keys()
            if values and not is_done:
                found[key_of(at)] = any(
                    outcome(with_value(spec, at, value), host, target, launcher) != before
                    for value in values
                )
    return found


def _at(spec: Any, place: Place) -> Any:
    """Return what stands at a place; of a device that is not there its defaults."""
    for step in place:
        inner = spec[step] if isinstance(step, int) else getattr(spec, step)
        if inner is None and type(spec) is VmSpec and step in DEVICES:
            inner = device_class(str(step))()
        spec = inner
    return spec


@pytest.mark.parametrize("launcher", [KVM_LAUNCH, LIBVIRT])
def test_each_field_does_something(launcher: Launcher) -> None:
    """Another value of each key makes another VM, claim or helper, or is refused, or told of."""
    hollow = {key for key, is_moved in tried(launcher).items() if not is_moved}
    assert hollow <= set(ELSEWHERE)
    assert len(ELSEWHERE) <= 10


def test_every_field_was_tried() -> None:
    """The golden cases have a table of every kind, so that no new key is forgotten."""
    every = {".".join(name.removesuffix("[]") for name in place) for place in KEYS}
    tables = {key for key in every if any(other.startswith(f"{key}.") for other in every)}
    assert every - tables - {"profile"} <= set(tried(KVM_LAUNCH))


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_does_something(profile: str) -> None:
    """Its defaults make another VM than the file alone."""
    host, target = golden_host("server"), target_of("", KVM_LAUNCH)
    plain, with_profile = (
        outcome(parse_vm(f"{head}{LEAST}", folder=Path("/vms")), host, target, KVM_LAUNCH)
        for head in ("", f'profile = "{profile}"\n')
    )
    assert plain != with_profile
