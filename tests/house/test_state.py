"""The state of what is long alive: nobody but its owner sets it."""

from __future__ import annotations

import attrs
import pytest

from kvm_launch.host.lease import Lease
from kvm_launch.options import LaunchOptions


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Lease)])
def test_a_lease_is_told_all_when_it_is_made(name: str) -> None:
    """Its fields are its own (ruff: SLF001), and what others read of it has no setter (mypy)."""
    assert name.startswith("_")
    public = getattr(Lease, name.removeprefix("_"), None)
    assert public is None or not isinstance(public, property) or public.fset is None


def test_options_stay_as_the_command_line_said() -> None:
    """One who needs others makes a copy."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        LaunchOptions().timeout = 1.0  # type: ignore[misc]
