"""``import kvmhooks``: what it offers, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import kvmhooks

HEAVY = ("attrs", "attr", "cattrs", "lxml", "libvirt", "pyudev", "qemu")


@pytest.mark.parametrize("name", kvmhooks.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name of ``__all__`` can be had, and is the object of its own module."""
    home, there = kvmhooks._HOMES[name]
    module = __import__(home, fromlist=[there])
    assert getattr(kvmhooks, name) is getattr(module, there)


def test_dir_tells_the_public_names() -> None:
    """``dir`` lists what is public and nothing else, also what was not loaded yet."""
    assert dir(kvmhooks) == sorted(kvmhooks.__all__) == sorted(kvmhooks._HOMES)


def test_another_name_is_refused() -> None:
    """A name that is not public is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'kvmhooks' has no attribute 'plans'"):
        _ = kvmhooks.plans


def test_the_import_loads_nothing_heavy() -> None:
    """``import kvmhooks`` loads none of the libraries that its names need."""
    modules = _run("import kvmhooks, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert not set(modules) & set(HEAVY)
    assert [name for name in modules if name.startswith("kvmhooks.")] == []


def test_plan_stays_the_function() -> None:
    """``kvmhooks.plan`` is the function, whatever was imported before or after."""
    code = """
import json
import kvmhooks
before = kvmhooks.plan
import kvmhooks.placement, kvmhooks.placement.plan, kvmhooks.placement.claim
import kvmhooks.spec, kvmhooks.qemu.argv, kvmhooks.libvirt.xml, kvmhooks.host
names = [callable(kvmhooks.plan), kvmhooks.plan is before, callable(kvmhooks.claim)]
print(json.dumps(names))
"""
    assert _run(code) == [True, True, True]


def _run(code: str) -> Any:
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return json.loads(run.stdout)
