"""The record of what has been read of a domain, so that the rest can be told.

Every element and attribute ends in one of three ways: it is said in the spec, kvmhooks decides it
anew whatever stands there, or it could not be expressed. Nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, Self, TypeVar, overload

from attrs import frozen

from kvmhooks.errors import Problem, SpecError
from kvmhooks.spec.forms import TEXT_FORMS

Tables = dict[str, Any]
"""Tables and keys of ``vm.toml``."""

SHOWN: Final = ("type", "device", "model", "name", "mode", "bus", "policy")
"""Attributes that tell a reader which element is meant and are never secret."""


class DomainAttribute(Protocol):
    """An attribute of an element that is read."""

    value: str


class DomainElement(Protocol):
    """An element that is read."""

    text: str

    @property
    def name(self) -> str:
        """The tag as the source has it."""
        ...

    @property
    def path(self) -> str:
        """Its place below the root."""
        ...

    @property
    def attributes(self) -> Mapping[str, DomainAttribute]:
        """All of its attributes."""
        ...

    @property
    def children(self) -> Sequence[Self]:
        """The elements in it."""
        ...

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...

    def all(self, path: str) -> Iterator[Self]:
        """Yield every element below this one at ``path``, in order."""
        ...

    def find(self, path: str) -> Self | None:
        """Return the first element at ``path``."""
        ...


E = TypeVar("E", bound=DomainElement)


@frozen(order=True)
class Left:
    """Something of a domain that its spec does not say."""

    at: str
    """The place where it stands: ``devices/graphics``, ``cpu@migratable``."""
    why: str

    def __str__(self) -> str:
        return f"{self.at}: {self.why}"


class DomainReading(Generic[E]):
    """A domain that is being read."""

    def __init__(self, root: E) -> None:
        self.root = root
        self.unexpressed: list[Left] = []
        self._said: dict[int, set[str]] = {}
        self._done: set[int] = set()
        self._decided: Counter[tuple[str, str]] = Counter()

    def first(self, tag: str, name: str, known: Mapping[str, str]) -> tuple[E, str] | None:
        """Return the first device of a kind, and the word for it in vm.toml if it has one.

        ``name`` is the attribute that tells; ``known`` has libvirt's words for it and vm.toml's.
        """
        element = self.root.find(f"devices/{tag}")
        word = None if element is None else known.get(element.get(name, ""))
        if element is None or word is None:
            return None
        self.read(element, name)
        return element, word

    def find(self, path: str, *names: str) -> E | None:
        """Return the first element at ``path``, with these of its attributes, as read."""
        found = self.root.find(path)
        return None if found is None else self.read(found, *names)

    def read(self, element: E, *names: str) -> E:
        """Note that an element is in the spec, with these of its attributes."""
        read = self._said.setdefault(id(element), set())
        read.update(names)
        return element

    def is_read(self, element: E) -> bool:
        """Return whether somebody has read an element."""
        return id(element) in self._said

    def text(self, path: str, *names: str) -> str | None:
        """Return the text of the first element at ``path``, as read; None without the element."""
        found = self.find(path, *names)
        return None if found is None else found.text.strip()

    def whole(self, path: str, *names: str) -> str | None:
        """Return the same with every blank of it: a file's name may end in one."""
        found = self.find(path, *names)
        return None if found is None else found.text

    def expect(self, element: E | None, attributes: dict[str, str], text: str = "") -> None:
        """Note that an element says what kvmhooks writes in any case, if it does."""
        if element is None or element.text.strip() != text:
            return
        if all(element.get(name) == value for name, value in attributes.items()):
            self.read(element, *attributes)

    def decide(self, element: E, what: str, why: str) -> None:
        """Note that kvmhooks decides anew what this element and all in it say."""
        self._done.add(id(element))
        self._decided[what, why] += 1

    def decide_attribute(self, element: E, name: str, why: str) -> None:
        """Note that kvmhooks decides anew what an attribute says, if it is there."""
        if name in element.attributes:
            self._said.setdefault(id(element), set()).add(name)
            self._decided[f"{element.path}@{name}", why] += 1

    def leave(self, element: E, why: str) -> None:
        """Note that this element and all in it could not be expressed."""
        self._done.add(id(element))
        self.unexpressed.append(Left(element.path, why))

    def leave_attribute(self, element: E, name: str, why: str) -> None:
        """Note that an attribute could not be expressed."""
        self._said.setdefault(id(element), set()).add(name)
        self.unexpressed.append(Left(f"{element.path}@{name}", why))

    def decided(self) -> tuple[Left, ...]:
        """Return what kvmhooks decides anew, each kind once."""
        return tuple(
            Left(what if count == 1 else f"{what} ({count} times)", why)
            for (what, why), count in self._decided.items()
        )

    def rest(self) -> Iterator[Left]:
        """Yield what nobody has read: whole elements first met, then single attributes."""
        yield from self._rest(self.root)

    def _rest(self, element: E) -> Iterator[Left]:
        if id(element) in self._done:
            return
        read = self._said.get(id(element))
        if read is None:
            yield Left(element.path, f"{_shown(element)}: vm.toml has no word for it")
            return
        for name in element.attributes:
            if name not in read and not name.startswith("xmlns"):
                yield Left(f"{element.path}@{name}", "vm.toml has no word for it")
        for child in element.children:
            yield from self._rest(child)


def fits(made: Any, text: str | None) -> bool:
    """Tell whether a text has the form of one of the spec's types."""
    return text is not None and re.fullmatch(TEXT_FORMS[made][0], text, re.ASCII) is not None


def number(text: str, at: str) -> int:
    """Return a count. Raises ``SpecError`` with its place."""
    if text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 16:
        return int(text)
    raise SpecError("domain", (Problem(at, repr(text[:80]), "a whole number"),))


def _shown(element: DomainElement) -> str:
    """Return the start tag with what is never secret."""
    attributes = "".join(
        f" {name}={element.attributes[name].value!r:.40}"
        for name in SHOWN
        if name in element.attributes
    )
    return f"<{element.name}{attributes}>"
