"""What has been read of a domain, so that the rest can be told.

Every element and attribute ends in one of three ways: it is said in the spec, kvmhooks decides it
anew whatever stands there, or it could not be expressed. Nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from attrs import frozen

from kvmhooks.domain.source import Element
from kvmhooks.spec.model import TEXT_FORMS

SHOWN: Final = ("type", "device", "model", "name", "mode", "bus", "policy")
"""Attributes that tell a reader which element is meant and are never secret."""


@frozen(order=True)
class Left:
    """Something of a domain that its spec does not say."""

    at: str
    """Where it stands: ``devices/graphics``, ``cpu@migratable``."""
    why: str

    def __str__(self) -> str:
        return f"{self.at}: {self.why}"


class Reading:
    """A domain that is being read."""

    def __init__(self, root: Element) -> None:
        self.root = root
        self.unexpressed: list[Left] = []
        self._said: dict[int, set[str]] = {}
        self._done: set[int] = set()
        self._decided: Counter[tuple[str, str]] = Counter()

    def find(self, path: str, *names: str) -> Element | None:
        """The first element at ``path``, with these of its attributes, as read."""
        found = self.root.find(path)
        return None if found is None else self.read(found, *names)

    def read(self, element: Element, *names: str) -> Element:
        """Note that an element is in the spec, with these of its attributes."""
        said = self._said.setdefault(id(element), set())
        said.update(names)
        return element

    def text(self, path: str, *names: str) -> str | None:
        """The text of the first element at ``path``, as read; None without the element."""
        found = self.find(path, *names)
        return None if found is None else found.text.strip()

    def whole(self, path: str, *names: str) -> str | None:
        """The same with every blank of it: a file's name may end in one."""
        found = self.find(path, *names)
        return None if found is None else found.text

    def expect(self, element: Element | None, said: dict[str, str], text: str = "") -> None:
        """Note that an element says what kvmhooks writes in any case, if it does."""
        if element is None or element.text.strip() != text:
            return
        if all(element.get(name) == value for name, value in said.items()):
            self.read(element, *said)

    def decide(self, element: Element, what: str, why: str) -> None:
        """Note that kvmhooks decides anew what this element and all in it say."""
        self._done.add(id(element))
        self._decided[what, why] += 1

    def decide_attribute(self, element: Element, name: str, why: str) -> None:
        """Note that kvmhooks decides anew what an attribute says, if it is there."""
        if name in element.attributes:
            self._said.setdefault(id(element), set()).add(name)
            self._decided[f"{element.path}@{name}", why] += 1

    def leave(self, element: Element, why: str) -> None:
        """Note that this element and all in it could not be expressed."""
        self._done.add(id(element))
        self.unexpressed.append(Left(element.path, why))

    def leave_attribute(self, element: Element, name: str, why: str) -> None:
        """Note that an attribute could not be expressed."""
        self._said.setdefault(id(element), set()).add(name)
        self.unexpressed.append(Left(f"{element.path}@{name}", why))

    def decided(self) -> tuple[Left, ...]:
        """What kvmhooks decides anew, each kind once."""
        return tuple(
            Left(what if count == 1 else f"{what} ({count} times)", why)
            for (what, why), count in self._decided.items()
        )

    def rest(self) -> Iterator[Left]:
        """What nobody has read: whole elements first met, then single attributes."""
        yield from self._rest(self.root)

    def _rest(self, element: Element) -> Iterator[Left]:
        if id(element) in self._done:
            return
        said = self._said.get(id(element))
        if said is None:
            yield Left(element.path, f"{_shown(element)}: vm.toml has no word for it")
            return
        for name in element.attributes:
            if name not in said and not name.startswith("xmlns"):
                yield Left(f"{element.path}@{name}", "vm.toml has no word for it")
        for child in element.children:
            yield from self._rest(child)


def fits(made: Any, text: str | None) -> bool:
    """Tell whether a text has the form of one of the spec's types."""
    return text is not None and re.fullmatch(TEXT_FORMS[made][0], text, re.ASCII) is not None


def _shown(element: Element) -> str:
    """The start tag with what is never secret."""
    said = "".join(
        f" {name}={element.attributes[name].value!r:.40}"
        for name in SHOWN
        if name in element.attributes
    )
    return f"<{element.name}{said}>"
