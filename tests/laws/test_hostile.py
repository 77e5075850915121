"""Fuzzers of what a stranger sends: a ``vm.toml``, and a domain XML for the verbs that read one.

Each case is made from a seed and a number, so that one that fails is made again from what the
failure says. Whatever is read ends in a result or in one error of ours, in seconds.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import random
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from lxml import etree

from kvmhooks.errors import KvmhooksError, ValueFormatError
from kvmhooks.host import Host, read
from kvmhooks.libvirt.edit.difference import unified
from kvmhooks.libvirt.edit.toml import to_toml
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.tuning.replan import misfit, replan
from kvmhooks.libvirt.tuning.tune import tune
from kvmhooks.placement import plan
from kvmhooks.show.printed import printed
from kvmhooks.spec import parse_vm
from kvmhooks.spec.profiles import PROFILES
from tests.fakehost import LARGE_SERVER, write_host

GOLDEN = Path(__file__).parents[1] / "golden"
SEED = 17
SECONDS = 20
"""More CPU time than any case may take."""

ODD = ("", " ", "a,b=c", "é", "\x7f", "\x85", "\u2028", "\ufffe", "\n", "'\"<&>", "%s{0}", "../..",
       "a" * 5000, "-1", "0x", "1e9", "٣", "²", "18446744073709551616", "0-99999999999", "^0,",
       "9" * 15, "9" * 5000, "/dev/null", "yes", "auto", "host", "0000:00:00.0")  # fmt: skip
VALUES: tuple[Any, ...] = (
    *ODD, 0, -1, 1, 2, 255, 256, 4096, 65_536, 1 << 63, 1 << 5_000, 1.5, math.inf, math.nan,
    True, False, [], {}, [[]], [{}], {"a": {}}, ["x"], dt.date(2026, 1, 1), dt.time(1),
)  # fmt: skip


@cache
def server() -> Host:
    """A host that is large enough for what is right."""
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), **LARGE_SERVER))


@cache
def vms() -> tuple[dict[str, Any], ...]:
    """The golden VMs, from which the others are made."""
    files = sorted((GOLDEN / "vms").glob("*.toml"))
    return tuple(tomllib.loads(file.read_text()) for file in files)


@cache
def domains() -> tuple[bytes, ...]:
    """Our own domains, but for the largest."""
    files = sorted((GOLDEN / "domains").glob("*.xml"))
    return tuple(data for file in files if len(data := file.read_bytes()) < 30_000)


def tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every table in a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from tables(inner)


def some_vm(rng: random.Random) -> str:
    """The text of a VM with up to four things changed, and now and then its text."""
    document = copy.deepcopy(rng.choice(vms()))
    if rng.random() < 0.2:
        document["profile"] = rng.choice([*PROFILES, 1, "x", []])
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        table = rng.choice(list(tables(document)))
        key = rng.choice([*table] or ["x"]) if rng.random() < 0.9 else "x"
        match rng.randrange(8):
            case 0:
                table.pop(key, None)
            case 1 if isinstance(table.get(key), list):
                table[key] = table[key] * rng.choice([2, 50, 400])
            case 2:
                document |= copy.deepcopy(dict([rng.choice([*rng.choice(vms()).items()])]))
            case 3 if isinstance(table.get(key), str):
                table[key] = _spoilt(rng, table[key])
            case 4 if type(table.get(key)) is int:
                table[key] = rng.choice([0, 1, 2, 3, 8, 64, 255, 256, 4096, 65_536])
            case 5 if type(table.get(key)) is bool:
                table[key] = not table[key]
            case _:
                table[key] = copy.deepcopy(rng.choice(VALUES))
    text = _toml(document)
    return _spoilt(rng, text) if rng.random() < 0.1 else text


def _toml(document: dict[str, Any]) -> str:
    """A document as TOML: ours for what it has, inline for what it does not."""
    try:
        return to_toml(document)
    except (TypeError, ValueError):
        return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in document.items())


def _inline(value: Any) -> str:
    match value:
        case bool() | float():
            text = str(value).lower()
        case int():
            text = f"{value:#x}" if value >= 0 else str(value)
        case str():
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict():
            pairs = (f"{json.dumps(key)} = {_inline(inner)}" for key, inner in value.items())
            text = f"{{{', '.join(pairs)}}}"
        case list():
            text = f"[{', '.join(map(_inline, value))}]"
        case _:
            text = value.isoformat()
    return text


def _spoilt(rng: random.Random, text: str) -> str:
    """A text with something in it that was not there, or something of it twice or not at all."""
    start = rng.randrange(len(text) + 1)
    end = min(start + rng.randrange(20), len(text))
    inside = rng.choice([*ODD, text[start:end] * 2, "", "[", "]]", "=", '"""', "#", "<", "/>", "&"])
    return text[:start] + inside + text[end:]


BYTES = (b"", b"\0", b"<", b">", b"'", b"&#10;", b"\xff", b"<a>", b"<!--", b"]]>")


def some_domain(rng: random.Random) -> bytes:
    """One of our domains with up to four things changed, as bytes or as a tree."""
    data = rng.choice(domains())
    if rng.random() < 0.2:
        raw = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = rng.choice(BYTES)
        return bytes(raw)
    root = etree.fromstring(data)
    for _ in range(rng.randrange(1, 5)):
        _change(rng, root)
    return etree.tostring(root)


def _change(rng: random.Random, root: Any) -> None:
    """Change one element: what it says, whether it is there, how often."""
    elements = [each for each in root.iter() if isinstance(each.tag, str)]
    element = rng.choice(elements)
    odd = rng.choice([text for text in ODD if _is_xml(text)])
    match rng.randrange(6):
        case 0 if element.attrib:
            element.set(rng.choice(list(element.attrib)), odd)
        case 1:
            element.text = odd
        case 2 if element is not root:
            element.getparent().remove(element)
        case 3 if element is not root:
            for _ in range(rng.choice([1, 3, 300])):
                element.addnext(_copy(element))
        case 4 if element.attrib:
            del element.attrib[rng.choice(list(element.attrib))]
        case _:
            other = rng.choice(elements)
            if other is not root:
                element.append(_copy(other))


def _copy(element: Any) -> Any:
    return etree.fromstring(etree.tostring(element, with_tail=False))


def _is_xml(text: str) -> bool:
    return not any(letter in text for letter in "\ufffe") and all(
        letter >= " " or letter in "\t\n\r" for letter in text
    )


def run_vm(text: str) -> str:
    """Read a VM, plan it and write it in every form; how far it came."""
    spec = parse_vm(text, folder=Path("/vms"))
    decided = plan(spec, server())
    written = {verb: printed(decided, verb, as_json=False) for verb in ("xml", "argv", "claim")}
    etree.fromstring(written["xml"])
    assert "\n" not in spec.name
    return "written"


def run_domain(document: bytes) -> str:
    """Import, tune and replan a domain; how far it came."""
    made = read_domain(document)
    parse_vm(made.toml, folder=Path("/"))
    profile = [None, *PROFILES][len(document) % (len(PROFILES) + 1)]
    tuned = tune(document, server(), profile=profile)
    etree.fromstring(tuned.document)
    unified(tuned.pieces, "a")
    misfit(document, server(), ())
    replan(document, server())
    return "replanned"


def fuzz(
    make: Callable[[random.Random], Any], run: Callable[[Any], str], count: int
) -> Counter[str]:
    """Run so many cases, and count how they ended."""
    ends: Counter[str] = Counter()
    for number in range(count):
        case = make(random.Random(f"{SEED}/{number}"))  # noqa: S311 -- the same every time
        started = time.process_time()
        try:
            ends[run(case)] += 1
        except KvmhooksError as error:
            # One without a place is for who calls a parser of values.
            ends["no place" if type(error) is ValueFormatError else type(error).__name__] += 1
        except Exception as error:
            error.add_note(f"seed {SEED}, case {number}: {case[:3000]!r}")
            raise
        taken = time.process_time() - started
        assert taken < SECONDS, f"seed {SEED}, case {number} took {taken:.0f} s"
    assert not ends["no place"]
    print(f"{count} cases: " + ", ".join(f"{end} {n}" for end, n in ends.most_common()))
    return ends


@pytest.mark.parametrize(
    "count", [1_500, pytest.param(60_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_any_vm_is_written_or_refused(count: int) -> None:
    """A ``vm.toml`` in which anything is changed is planned and rendered, or refused."""
    ends = fuzz(some_vm, run_vm, count)
    assert ends["written"] > 0
    assert ends["SpecError"] > count / 10


@pytest.mark.parametrize(
    "count", [250, pytest.param(10_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_any_domain_is_read_or_refused(count: int) -> None:
    """A domain in which anything is changed is imported, tuned and replanned, or refused."""
    ends = fuzz(some_domain, run_domain, count)
    assert ends["replanned"] > 0
    assert ends["InputError"] > 0
