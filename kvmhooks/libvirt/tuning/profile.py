"""The words that a profile has for a domain that is silent about them.

The VM is rendered twice, with the profile and without. The profile's additions are added to the
domain too, unless the domain has a word of its own for it: that always wins, as in a ``vm.toml``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from attrs import evolve

from kvmhooks.libvirt.edit.editor import New, Target
from kvmhooks.libvirt.edit.text import Element, parse
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.spec.model import VmSpec

_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"

_KNOWN_BY: Final[dict[str, tuple[str, ...]]] = {
    "controller": ("type",),
    "disk": ("source@file", "source@dev", "source@name"),
    "feature": ("name",),
    "input": ("type",),
    "interface": ("mac@address",),
    "channel": ("target@name",),
    "timer": ("name",),
}
"""The mark that tells one element of a tag from another: an attribute of its own, or of a child."""

_OTHERS: Final = {
    "name", "uuid", "memory", "currentMemory", "vcpu", "iothreads", "iothreadids", "numatune",
    "os", "vcpupin", "emulatorpin", "iothreadpin", "topology", "numa", "emulator", "address",
    "alias", "hint-dedicated",
}  # fmt: skip
"""Elements that the other concerns or libvirt see to, or that no profile speaks of."""

_NEVER_ADDED: Final = {"disk", "interface"}
"""A profile says something of those that there are."""

_WHOLE: Final = {"hugepages", f"{{{_QEMU}}}commandline"}
"""Elements that are left as they are once they are there: their children go together."""


_PLACING: Final = ("cpu.placement", "cpu.smt", "isolation.exclusive")
"""The words of a profile that are nothing without CPUs that the planner chooses."""

_ALONE: Final = ("cpu.realtime", "cpu.cpu_pm")
"""Those that keep a CPU from everybody else: for vCPUs with CPUs of their own."""

_POLICY: Final = "policy"
"""The settings of the host that a profile asks for."""


def without_place(spec: VmSpec, plain: VmSpec) -> tuple[VmSpec, tuple[str, ...]]:
    """Return the spec without a profile's words for a VM that gets no place, and those words.

    ``plain`` is the same domain without the profile. One that has CPUs of its own already may have
    what such CPUs bear.
    """
    left_out = []
    for at in _PLACING if plain.isolation.exclusive else (*_PLACING, *_ALONE):
        table, _, key = at.partition(".")
        before = getattr(getattr(plain, table), key)
        if getattr(getattr(spec, table), key) != before:
            left_out.append(at)
            spec = evolve(spec, **{table: evolve(getattr(spec, table), **{key: before})})
    if spec.policy != plain.policy and not plain.isolation.exclusive:
        left_out.append(_POLICY)  # it is of those CPUs, or for what runs on them
        spec = evolve(spec, policy=plain.policy)
    applied = tuple(
        default
        for default in spec.applied
        if default.at not in left_out
        and not (_POLICY in left_out and default.at.startswith(f"{_POLICY}."))
    )
    return evolve(spec, applied=applied), tuple(left_out)


def profile(situation: Situation) -> None:
    """Add everything that the profile says and the domain does not."""
    if situation.renderings is None:
        return
    stays = situation.keep_pins or situation.stays
    rendered = situation.renderings(stays=stays)
    wished, plain = rendered.wished, rendered.plain
    why = f"profile {situation.spec.profile}"
    situation.advice += [warning for warning in wished.warnings if warning.startswith(why)]
    if rendered.left_out:
        cause = f"{situation.manager} places this VM" if situation.manager else "its pins stay"
        words = f"{why}: {', '.join(rendered.left_out)} left out"
        situation.advice.append(f"{words}: these need CPUs that are chosen for them, and {cause}")
    already = plain.hardware.left_out
    situation.advice += [each for each in wished.hardware.left_out if each not in already]
    with_it, without = (parse(domain_xml(plan), "rendering").root for plan in (wished, plain))
    _Profile(situation, why).compare(with_it, without, situation.root)


class _Profile:
    """The way through three trees at once."""

    def __init__(self, situation: Situation, why: str) -> None:
        self.editor = situation.editor
        self.why = why

    def compare(self, wished: Element, plain: Element, own: Element) -> None:
        """Bring what differs between the first two to the third, which is their counterpart."""
        for name, attribute in wished.attributes.items():
            differs = plain.get(name) != attribute.value
            if differs and own.get(name) is None and not name.startswith("xmlns"):
                self.editor.set(own, name, attribute.value, self.why)
        before, here = dict(_named(plain)), dict(_named(own))
        for key, child in _named(wished):
            found, known = here.get(key), before.get(key)
            if known is None:
                self._bring(child, found, own)
            elif found is None:
                self._add_difference(child, known, own)
            elif found.tag not in _WHOLE:
                self.compare(child, known, found)

    def _bring(self, wished: Element, found: Element | None, parent: Element) -> None:
        """Have an element, or what it says beyond the one that is there."""
        if found is None:
            self._add(parent, wished)
            return
        if wished.tag in _WHOLE or _contradicts(found, wished):
            return
        for name, attribute in wished.attributes.items():
            if found.get(name) is None and not name.startswith("xmlns"):
                self.editor.set(found, name, attribute.value, self.why)
        here = dict(_named(found))
        for key, child in _named(wished):
            self._bring(child, here.get(key), found)

    def _add(self, parent: Target, wished: Element) -> None:
        """Add a copy of an element and all in it, if it says anything."""
        is_hollow = wished.children and not wished.attributes and not any(_named(wished))
        if wished.tag not in _NEVER_ADDED and not is_hollow:
            new = self.editor.add(parent, _copied(wished, parent), self.why)
            for _, child in _named(wished):
                self._add(new, child)

    def _add_difference(self, wished: Element, plain: Element, parent: Target) -> None:
        """Add a copy with its children that are new; of an element that is not, all of it."""
        if wished.tag in _NEVER_ADDED or _is_same(wished, plain):
            return
        if not _is_same(wished, plain, with_children=False):
            self._add(parent, wished)
            return
        new = self.editor.add(parent, _copied(wished, parent), self.why)
        before = dict(_named(plain))
        for key, child in _named(wished):
            if key in before:
                self._add_difference(child, before[key], new)
            else:
                self._add(new, child)


def _copied(wished: Element, parent: Target) -> New:
    """Return the element alone; in its parent's own prefix where both are of one name space."""
    attributes = {name: attribute.value for name, attribute in wished.attributes.items()}
    new = New(wished.name, attributes, text=wished.text.strip())
    if wished.prefix and isinstance(parent, Element):
        space, _, local = wished.tag.rpartition("}")
        if parent.tag.startswith(space):
            new.tag = f"{parent.prefix}:{local}" if parent.prefix else local
        else:
            new.attributes = {f"xmlns:{wished.prefix}": space[1:], **attributes}
    return new


def _named(element: Element) -> Iterator[tuple[tuple[object, ...], Element]]:
    """Yield the children, each with what tells it from its siblings, in all three trees alike.

    libvirt adds the PCI controllers that a device needs.
    """
    seen: Counter[tuple[object, ...]] = Counter()
    for child in element.children:
        if child.tag in _OTHERS or (child.tag == "controller" and child.get("type") == "pci"):
            continue
        known_by = _KNOWN_BY.get(child.tag, ())
        key = (child.tag, *(_said(child, name) for name in known_by))
        seen[key] += 1
        if seen[key] == 1 or not known_by:
            yield (*key, seen[key]), child


def _said(element: Element, name: str) -> str | None:
    at, _, attribute = name.rpartition("@")
    found = element.find(at) if at else element
    return None if found is None else found.get(attribute)


def _contradicts(found: Element, wished: Element) -> bool:
    """Return whether an element of the domain says something else than the profile's."""
    if found.text.strip() != wished.text.strip():
        return True
    return any(
        found.get(name, attribute.value) != attribute.value
        for name, attribute in wished.attributes.items()
        if not name.startswith("xmlns")
    )


def _is_same(element: Element, other: Element, *, with_children: bool = True) -> bool:
    return _written(element, with_children) == _written(other, with_children)


def _written(element: Element, with_children: bool) -> tuple[object, ...]:  # noqa: FBT001 -- own
    attributes = {name: attribute.value for name, attribute in element.attributes.items()}
    children = [_written(child, True) for _, child in _named(element)] if with_children else []
    return element.tag, attributes, element.text.strip(), children
