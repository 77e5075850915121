"""A table with other values is what its file would give that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvmhooks.errors import SpecError
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.change import changed

VM = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'

CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("", "tuning.shares = 200", {"shares": 200}),
    ("tuning.shares = 100", "tuning.shares = 200", {"shares": 200}),
    ("tuning.shares = 100", "", {"shares": None}),
    (
        'tuning.shares = 100\ntuning.memory.hard = "4GiB"',
        'tuning.memory.hard = "3GiB"\ntuning.memory.soft = "2GiB"',
        {"shares": None, "memory.hard": "3GiB", "memory.soft": "2GiB"},
    ),
]


def parse(more: str = "") -> VmSpec:
    """Return the VM with more lines."""
    return parse_vm(VM + more, folder=Path("/vms"))


@pytest.mark.parametrize(("before", "after", "keys"), CHANGES)
def test_a_change_is_what_the_file_would_say(before: str, after: str, keys: dict[str, Any]) -> None:
    """Whole specs: what is not named stays, None takes what stands where nothing is said."""
    assert changed(parse(before), "tuning", keys) == parse(after)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"share": 200}, "tuning.share: found an unknown key"),
    ({"share": None}, "tuning.share: found an unknown key, expected one of that table"),
    ({"shares.more": None}, "tuning.shares.more: found an unknown key"),
    ({"shares": "many"}, "tuning.shares: found 'many', expected"),
    ({"memory": 1, "memory.hard": "1GiB"}, "tuning.memory.hard: found a value and a table"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_a_file_may_not_say_is_refused(keys: dict[str, Any], message: str) -> None:
    """With its place, as in the file."""
    with pytest.raises(SpecError) as error:
        changed(parse(), "tuning", keys)
    assert message in str(error.value)


def test_a_change_that_contradicts_another_table_is_refused() -> None:
    """A table that is consistent in itself may not suit the rest of the VM."""
    with pytest.raises(
        SpecError, match=r"vm.toml: isolation.exclusive: found true, expected cpu.placement"
    ):
        changed(parse(), "isolation", {"exclusive": True})
