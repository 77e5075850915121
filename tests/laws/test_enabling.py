"""Laws of keys that need another: refused alone, taken beside it, and told by the schema.

The keys are found by walking the spec's classes: none is named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import jsonschema
import pytest

from kvmhooks.errors import SpecError
from kvmhooks.spec import parse_vm
from kvmhooks.spec.device import hints_of
from kvmhooks.spec.enabling import Enabler, Rules, is_off, rules_of, unenabled
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.spec.schema import schema
from kvmhooks.spec.structure import structure
from kvmhooks.spec.tuning import policy_of
from tests.laws.test_every_key import KEYS, Place, schema_of, with_value

FOLDER = Path("/vms")
VALIDATOR = jsonschema.Draft202012Validator(schema())
LEAST = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'


def ruled(made: Any = VmSpec, at: Place = ()) -> Iterator[tuple[Place, Rules]]:
    """Yield the place of each key that needs another, with its rules."""
    hints = hints_of(made)
    for field in attrs.fields(made):
        place = (*at, field.name)
        if rules_of(field):
            yield place, rules_of(field)
        for kind in filter(attrs.has, (hints[field.name], *get_args(hints[field.name]))):
            is_many = get_origin(hints[field.name]) is tuple
            yield from ruled(kind, (*at, f"{field.name}[]" if is_many else field.name))


RULED = [(place, rules) for place, rules in ruled() if place in KEYS]


def value_for(place: Place) -> Any:
    """Return a value of a key that asks for something."""
    if (given := VALUES.get(place[-1])) is not None:
        return given
    form = schema_of(place)
    default = field_of(place).default
    for value in (*form.get("enum", ()), True, form.get("minimum", 1), "a", "1GiB", "0-1"):
        checked = jsonschema.Draft202012Validator(form).is_valid(value)
        if checked and not (value == default and is_off(value)):
            return value
    raise AssertionError(place)


VALUES: dict[str, Any] = {
    "address": "0000:3b:00.0",
    "id": "8086:1572",
    "parent": "0000:3b:00.0",
    "policy": "0x1",
    "dimm": [{"size": "1GiB"}],
    "virtio": [{"size": "1GiB"}],
    "rate": "1KiB",
    "listen": "::1",
}
"""Values of keys that have a form."""


def field_of(place: Place) -> attrs.Attribute[Any]:
    """Return the field of a key."""
    made: Any = VmSpec
    for name in place[:-1]:
        hint = hints_of(made)[name.removesuffix("[]")]
        made = next((kind for kind in get_args(hint) if attrs.has(kind)), hint)
    return attrs.fields_dict(made)[place[-1]]


def whole(place: Place, enablers: tuple[Enabler, ...]) -> dict[str, Any]:
    """Return a document that says a key, what its tables must have, and what enables it."""
    document, _ = with_value(place, value_for(place))
    table, form = document, schema()
    for name in place[:-1]:
        key = name.removesuffix("[]")
        table, form = table[key], form["properties"][key]
        if name != key:
            table, form = table[0], form["items"]
        for other in form["required"]:
            table.setdefault(other, "a" if form["properties"][other].get("type") == "string" else 1)
    for enabler in enablers:
        *above, last = enabler.key.split(".")
        target = document if above else table
        for name in above:
            target = target.setdefault(name, {})
        names = (*above, last) if above else (*place[:-1], last)
        target[last] = enabler.values[-1] if enabler.values else value_for(names)
    return document


def refused(document: dict[str, Any]) -> dict[str, str]:
    """Return the places of keys of a document that do nothing, and what each needs."""
    return {
        problem.at.replace("[0]", "[]"): problem.expected
        for problem in unenabled(structure(document, FOLDER), document)
    }


def test_there_are_such_keys() -> None:
    """The walk finds them: those that a reader of the manual has tried in vain are among them."""
    found = {".".join(place) for place, _ in RULED}
    assert found >= {
        *("watchdog.action", "vsock.cid", "rng.rate", "rng.period", "tpm.state", "graphics.heads"),
        *("isolation.strict", "sound.backend", "boot.initrd", "net[].mode", "mdev[].display"),
        *("tuning.vcpus.priority", "security.policy", "memory.allocate", "run.restart_delay"),
    }
    assert len(found) > 50


@pytest.mark.parametrize(("place", "rules"), RULED, ids=[".".join(place) for place, _ in RULED])
def test_a_key_alone_is_refused_and_names_what_enables_it(place: Place, rules: Rules) -> None:
    """Without its enabler it is refused, by the reader and the schema; beside it neither minds."""
    alone = whole(place, ())
    told = refused(alone)
    at = ".".join(place)
    is_default_enough = all(_enabled_by_default(place, rule) for rule in rules)
    assert (at in told) is not is_default_enough
    assert VALIDATOR.is_valid(alone) is not (at in told)
    if at in told:
        assert any(enabler.key in told[at] for rule in rules for enabler in rule)
    beside = whole(place, tuple(rule[0] for rule in rules))
    while further := refused(beside).get(at):  # a rule that another enabler fulfils
        raise AssertionError(further)
    assert at not in refused(beside)


def _enabled_by_default(place: Place, rule: tuple[Enabler, ...]) -> bool:
    made = [
        (enabler, field_of(tuple(enabler.key.split(".")) if "." in enabler.key
                           else (*place[:-1], enabler.key)))
        for enabler in rule
    ]  # fmt: skip
    return any(enabler.enables(field.default) for enabler, field in made)


@pytest.mark.parametrize(("place", "rules"), RULED, ids=[".".join(place) for place, _ in RULED])
def test_each_rule_is_needed(place: Place, rules: Rules) -> None:
    """Each enabler's other values, where it has any, leave the key without effect: refused."""
    at = ".".join(place)
    for number, rule in enumerate(rules):
        others = tuple(other[0] for index, other in enumerate(rules) if index != number)
        document = whole(place, others)
        off = False
        for enabler in rule:
            form = schema_of(tuple(enabler.key.split(".")) if "." in enabler.key
                             else (*place[:-1], enabler.key))  # fmt: skip
            wrong = [value for value in form.get("enum", ()) if not enabler.enables(value)]
            if not wrong:
                continue
            off = True
            *above, last = enabler.key.split(".")
            table = document if above else _table(document, place)
            for name in above:
                table = table.setdefault(name, {})
            table[last] = wrong[0]
        if off:
            assert at in refused(document), (document, rule)
            assert not VALIDATOR.is_valid(document)


def _table(document: dict[str, Any], place: Place) -> dict[str, Any]:
    table = document
    for name in place[:-1]:
        key = name.removesuffix("[]")
        table = table[key] if key == name else table[key][0]
    return table


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_is_in_its_own_way(profile: str) -> None:
    """A profile gives nothing that does nothing, and a file of no words has nothing left out."""
    spec = parse_vm(f'profile = "{profile}"\n{LEAST}', folder=FOLDER)
    assert spec.left_out == ()
    assert {default.at for default in spec.applied} == {
        default.at for default in PROFILES[profile][1] if "[]" not in default.at
    }


def test_a_file_wins_over_its_profile_and_that_is_told() -> None:
    """A default that the file's own words leave without effect is left out, by its name."""
    spec = parse_vm(f'profile = "realtime"\n{LEAST}cpu.placement = "shared"', folder=FOLDER)
    needs = 'it needs cpu.placement = "dedicated"'
    assert (spec.isolation.exclusive, spec.cpu.realtime, spec.cpu.smt) == (None, False, "share")
    assert spec.left_out[:3] == (
        f'profile realtime: cpu.smt is left out: {needs} or "mixed"',
        f'profile realtime: cpu.realtime is left out: {needs} or "mixed"',
        f"profile realtime: isolation.exclusive is left out: {needs}",
    )
    assert not {"cpu.smt", "cpu.realtime", "isolation.exclusive"} & {
        default.at for default in spec.applied
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('cpu.placement = "shared"', set()),
        ("isolation.exclusive = false", set()),
        ("cpu.realtime = false", {"memory.thp", "power.governor", "kernel.timer_migration"}),
        ("", {"memory.thp", "power.governor", "kernel.timer_migration", "kernel.rt_runtime"}),
    ],
)
def test_the_host_changes_for_the_sake_of_what_is_there(text: str, kept: set[str]) -> None:
    """A default that a profile asks of the host goes with the key that it is for; that is told."""
    spec = parse_vm(f'profile = "realtime"\n{LEAST}{text}', folder=FOLDER)
    asked = {"memory.thp", "power.governor", "kernel.timer_migration", "kernel.rt_runtime"}
    assert policy_of(spec).keys() & asked == kept
    for name in asked - kept:
        prefix = f"profile realtime: policy.{name} is left out: it needs "
        assert any(sentence.startswith(prefix) for sentence in spec.left_out)


def test_a_default_that_contradicts_the_file_is_told_with_its_profile() -> None:
    """It is not told as if the file said it."""
    with pytest.raises(SpecError) as raised:
        parse_vm(f'profile = "realtime"\n{LEAST}memory.backend = "ram"', folder=FOLDER)
    assert str(raised.value) == (
        'vm.toml: memory.backend: found "ram", with memory.hugepages of profile realtime, '
        'expected "memfd" or "file" for huge pages'
    )


def test_what_is_off_needs_nothing() -> None:
    """That a device's word is off, as it is by default, is true without the device."""
    text = f"{LEAST}isolation.strict = false\nballoon.deflate_on_oom = false"
    spec = parse_vm(text, folder=FOLDER)
    assert spec.isolation.strict is False
