"""Of the kernel's files only a newline ends a line: nothing that ends one elsewhere reads them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    *("kvmhooks/host", "kvmhooks/devices", "kvmhooks/isolate", "kvmhooks/kvm"),
    *("kvmhooks/libvirt", "kvmhooks/qemu", "kvmhooks/survey", "launcher"),
)

FORBIDDEN = {
    "splitlines": "ends lines at ten more characters: split at a newline",
    "readlines": "ends lines at a carriage return, too: read bytes, and split at a newline",
    "read_text": "makes a newline of a carriage return: read bytes, and decode them",
}
ALLOWED = {
    ("kvmhooks/isolate/hook/bundle.py", "read_text"): "our own source",
    (
        "kvmhooks/isolate/hook/bundle.py",
        "splitlines",
    ): "what Python says of our own source, and that",
    ("kvmhooks/isolate/system/processes.py", "splitlines"): "the last words of a program",
    (
        "kvmhooks/isolate/hook/installation.py",
        "read_text",
    ): "one word, as a whole, and our own file",
    ("kvmhooks/devices/vf_netlink.py", "read_text"): "one number",
    ("kvmhooks/kvm/probe.py", "read_text"): "the last words of QEMU",
    ("kvmhooks/kvm/probe.py", "splitlines"): "the same",
    ("kvmhooks/kvm/verdict.py", "read_text"): "one word, as a whole",
    ("launcher/kvm_launch/spawn/helper_processes.py", "splitlines"): "the last words of a helper",
    ("launcher/kvm_launch/prepare/images.py", "splitlines"): "the last words of qemu-img",
    ("launcher/kvm_launch/prepare/checks.py", "read_text"): "one number",
    ("launcher/kvm_launch/spawn/taps.py", "read_text"): "one word, as a whole, and two numbers",
}
"""The modules that read other lines than the kernel's, and whose those are."""

FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


@cache
def called(file: Path) -> set[str]:
    """Return what of the forbidden is called in a file."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in FORBIDDEN
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_a_newline_ends_a_line(file: Path) -> None:
    """A name from another user (a group, a socket, a mount) would begin a line of its own."""
    name = str(file.relative_to(ROOT))
    wrong = {method for method in called(file) if (name, method) not in ALLOWED}
    assert not wrong, "; ".join(f".{method}() {FORBIDDEN[method]}" for method in sorted(wrong))


@pytest.mark.parametrize("room", ["kvmhooks/host", "kvmhooks/devices"])
def test_only_space_and_tab_are_between_words(room: str) -> None:
    """``str.split`` without a separator parts words at what a name may hold: ``split_words``."""
    bare = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "split"
        and not node.args
        and not node.keywords
    ]
    assert bare == []


def test_what_is_allowed_is_done() -> None:
    """An exception that nobody needs any more is none."""
    for name, method in ALLOWED:
        assert method in called(ROOT / name), f"{name} does not call {method}"
