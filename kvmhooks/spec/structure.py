"""TOML's values into the spec's classes, with every problem at once.

cattrs does the walking and collects what went wrong; the hooks here say what each kind of value
must look like. Nothing is coerced: ``vcpus = "4"`` is a mistake, not 4.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, Literal, get_args, get_origin

import attrs
from cattrs import BaseValidationError, Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from kvmhooks.errors import Problem, ValueFormatError
from kvmhooks.spec.device import NotLoaded, device_class, resolve_types
from kvmhooks.spec.forms import MIXED, RANGES, TEXT_FORMS, Firmware, HugePages, Number, VfChoice
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.tuning import word_of
from kvmhooks.values import ByteSize, CpuSet, PciAddress

Hook = Callable[[Any, Any], Any]

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""The characters that no path may have: those that XML 1.0 has no place for (its production
``Char``), names that are no UTF-8 (Python's lone surrogates), control characters, and all that ends
a line somewhere.
"""


_LONGEST_PATH: Final = 4_095
"""``PATH_MAX`` of linux/limits.h, without the NUL at the end."""

_LONGEST_TEXT: Final = 131_071
"""``MAX_ARG_STRLEN`` of linux/binfmts.h for 4 KiB pages, without the NUL: no argument is longer."""

_LONG: Final = 1024
"""Numbers of more bits than this are not written out."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""A key that needs no quotes."""

_GUESSED: Final = 20
"""For so many unknown keys of a table the nearest known one is looked for."""


class Mismatch(ValueError):
    """A value is not what its place takes."""

    def __init__(self, found: object, expected: str) -> None:
        super().__init__(found, expected)
        self.found = show(found)
        self.expected = expected


class Unsuitable(ValueError):
    """A document does not describe a VM: ``problems`` says all that is wrong."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems


def structure(document: dict[str, Any], folder: Path) -> VmSpec:
    """Make a spec of a parsed TOML ``document`` whose relative paths start at ``folder``.

    Raises ``Unsuitable``.
    """
    try:
        return _converter(folder).structure(document, VmSpec)
    except BaseValidationError as error:
        raise Unsuitable(tuple(_problems(error, ""))) from error


def structure_table(document: dict[str, Any], kind: type, at: str, folder: Path) -> Any:
    """Make one table, which stands at the path ``at``. Raises ``Unsuitable``."""
    try:
        return _converter(folder).structure(document, kind)
    except BaseValidationError as error:
        raise Unsuitable(tuple(_problems(error, at))) from error


def show(value: object) -> str:
    """Write a value as its author would: TOML's true and false, quoted texts."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > _LONG:
        return "a number of hundreds of digits"  # Python writes no more than 4,300
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"


@functools.lru_cache(maxsize=4)
def _converter(folder: Path) -> Converter:
    """Return the converter of a document whose relative paths start at ``folder``."""
    converter = Converter()

    def path(value: Any, _: Any) -> Path:
        if not isinstance(value, str) or not value:
            raise Mismatch(value, "a path")
        made = os.path.normpath(folder / value)
        if _UNFIT.search(made):
            unfit = value if _UNFIT.search(value) else made
            raise Mismatch(unfit, "a path of one line without control characters, in UTF-8")
        if len(made.encode()) > _LONGEST_PATH:
            raise Mismatch(made, f"a path of at most {_LONGEST_PATH} bytes")
        return Path(made)

    def firmware(value: Any, made: Any) -> Path | str:
        return value if value in ("bios", "uefi") else path(value, made)

    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(ByteSize, _size)
    converter.register_structure_hook(HugePages, _huge_pages)
    converter.register_structure_hook(VfChoice, _function)
    converter.register_structure_hook(CpuSet, _parsed(CpuSet.parse, 'a list such as "0-3,8"'))
    converter.register_structure_hook(
        PciAddress, _parsed(PciAddress.parse, 'a PCI address such as "0000:3b:00.0"')
    )
    converter.register_structure_hook(Path, path)
    converter.register_structure_hook(Firmware, firmware)
    for number, (least, most) in RANGES.items():
        converter.register_structure_hook(number, _count(least, most))
    for made, (pattern, expected) in TEXT_FORMS.items():
        converter.register_structure_hook(made, _text_form(pattern, expected))
    for made, (numbers, words, expected) in MIXED.items():
        converter.register_structure_hook(made | None, _mixed(numbers, words, expected))
    converter.register_structure_hook_factory(_is_choice, _choice)
    converter.register_structure_hook_factory(_is_array, lambda made: _array(made, converter))
    converter.register_structure_hook_factory(attrs.has, lambda made: _table(made, converter))
    converter.register_structure_hook_factory(_is_not_loaded, lambda _: _device(converter))
    return converter


def _count(least: int, most: int) -> Hook:
    def structure_count(value: Any, _: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Mismatch(value, f"a whole number from {least} to {most}")
        return value

    return structure_count


def _parsed(parse: Callable[[str], Any], expected: str) -> Hook:
    """Return the hook that applies ``parse`` to a text; it raises ``ValueFormatError``."""

    def structure_parsed(value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            raise Mismatch(value, expected)
        try:
            return parse(value)
        except ValueFormatError as error:
            raise Mismatch(value, error.expected) from error

    return structure_parsed


def _flag(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise Mismatch(value, "true or false")
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise Mismatch(value, "a text of one line")
    if len(value.encode()) > _LONGEST_TEXT:
        raise Mismatch(value, f"a text of at most {_LONGEST_TEXT} bytes")
    return value


def _size(value: Any, _: Any) -> ByteSize:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    text = str(value) if is_number and value.bit_length() <= _LONG else value
    if not isinstance(text, str):
        raise Mismatch(value, 'a size such as "512MiB" or "4GiB"')
    try:
        return ByteSize.parse(text)
    except ValueFormatError as error:
        raise Mismatch(value, error.expected) from error


def _huge_pages(value: Any, _: Any) -> ByteSize | Literal[False, "auto"]:
    if value is False:
        return False
    if value == "auto":
        return "auto"
    if value not in ("2MiB", "1GiB"):  # no set: an array or a table has no hash
        raise Mismatch(value, '"2MiB", "1GiB", "auto" or false')
    return ByteSize.parse(value)


def _function(value: Any, _: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    least, most = RANGES[Number]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Mismatch(value, f'"auto" or a whole number from {least} to {most}')
    return value


def _text_form(pattern: str, expected: str) -> Hook:
    form = re.compile(pattern, re.ASCII)

    def structure_text(value: Any, _: Any) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Mismatch(value, expected)
        return value

    return structure_text


def _mixed(numbers: tuple[int, int], words: tuple[str, ...], expected: str) -> Hook:
    count = _count(*numbers)

    def structure_mixed(value: Any, made: Any) -> Any:
        try:
            return value if value in words else count(value, made)
        except Mismatch as error:
            raise Mismatch(value, expected) from error

    return structure_mixed


def _is_choice(made: Any) -> bool:
    return get_origin(made) is Literal


def _choice(made: Any) -> Hook:
    choices = get_args(made)

    def structure_choice(value: Any, _: Any) -> Any:
        if value not in choices:
            quoted = [f'"{choice}"' for choice in choices]
            raise Mismatch(value, " or ".join([", ".join(quoted[:-1]), quoted[-1]]))
        return value

    return structure_choice


def _is_array(made: Any) -> bool:
    return get_origin(made) is tuple


def _is_table(made: Any) -> bool:
    return attrs.has(made) or _is_not_loaded(made)


def _array(made: Any, converter: Converter) -> Hook:
    item = get_args(made)[0]
    as_list: Any = GenericAlias(list, (item,))
    kind = "tables ([[...]])" if _is_table(item) else "numbers" if item is int else "texts"

    def structure_array(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Mismatch(value, f"an array of {kind}")
        return tuple(converter.structure(value, as_list))

    return structure_array


def _is_not_loaded(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, NotLoaded)


def _device(converter: Converter) -> Hook:
    def structure_device(value: Any, made: Any) -> Any:
        return converter.structure(value, device_class(made.device))

    return structure_device


def _table(made: Any, converter: Converter) -> Hook:
    @functools.cache
    def walk() -> Hook:
        """Convert such a table; made for the first one: cattrs compiles it, few files have it."""
        resolve_types(made)
        keyless = {
            each.name: override(omit=True) for each in attrs.fields(made) if not is_key(each)
        }
        return make_dict_structure_fn(
            made,
            converter,
            _cattrs_forbid_extra_keys=True,
            **keyless,  # type: ignore[arg-type]
        )

    def structure_table(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(value, "a table")
        return walk()(value, made)

    return structure_table


def is_key(field: attrs.Attribute[Any]) -> bool:
    """Tell whether a field of the spec's classes is a key of the file."""
    return field.metadata.get("key", True) is True


def _problems(error: BaseValidationError, at: str) -> Iterator[Problem]:
    for inner in error.exceptions:
        place = _place(inner, at)
        if isinstance(inner, BaseValidationError):
            yield from _problems(inner, place)
        elif isinstance(inner, ForbiddenExtraKeysError):
            yield from _unknown_keys(inner, at)
        elif isinstance(inner, Mismatch):
            yield Problem(place, inner.found, inner.expected)
        elif isinstance(inner, KeyError):
            yield Problem(place, "nothing", "a value: this key must be there")
        else:
            raise inner  # a defect of ours, not of the file


def _place(inner: Exception, at: str) -> str:
    """Return where an error is, inside of ``at``.

    cattrs says it in a note: «Structuring class Cpu @ attribute vcpus», «… @ index 2»
    (``gen/__init__.py`` and ``converters.py``); until 23.1 the note is a plain text.
    """
    for note in getattr(inner, "__notes__", ()):
        _, word, place = str(note).rpartition(" @ ")
        kind, _, name = place.partition(" ")
        if word and kind == "attribute":
            return f"{at}.{name}" if at else name
        if word and kind == "index":
            return f"{at}[{name}]"
    return at


def _unknown_keys(inner: ForbiddenExtraKeysError, at: str) -> Iterator[Problem]:
    import difflib  # noqa: PLC0415 -- only for a message

    known = [field.name for field in attrs.fields(inner.cl) if is_key(field)]
    every = "one of " + ", ".join(known)
    for number, key in enumerate(sorted(inner.extra_fields)):
        near = difflib.get_close_matches(key, known, n=1) if number < _GUESSED else []
        name = key if _BARE.fullmatch(key) else show(key)
        path = f"{at}.{name}" if at else name
        expected = word_of(path) or (f'"{near[0]}"?' if near else every)
        yield Problem(path, "an unknown key", expected)
