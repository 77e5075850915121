"""The directories that a QEMU may write: a table, and what holds for any VM."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from kvm_launch.spawn.sandbox import ALWAYS, writable
from kvmhooks.spec.structure import structure
from tests.laws.strategies import vm_documents

VM = {"name": "a", "cpu": {"vcpus": 1}, "memory": {"size": "64MiB"}}

TABLE = [
    ({}, []),
    ({"disk": [{"path": "/vm/a.raw"}]}, ["/vm"]),
    ({"disk": [{"path": "/vm/a.iso", "readonly": True}]}, []),
    ({"disk": [{"path": "/dev/vg0/a"}]}, []),
    ({"disk": [{"path": "/vm/a.raw"}, {"path": "/vm/more/b.raw"}]}, ["/vm"]),
    ({"boot": {"firmware": "uefi", "variables": "/nvram/a.fd"}}, ["/nvram"]),
    ({"net": [{"type": "vhost-user", "socket": "/sw/a.sock", "server": True}]}, ["/sw"]),
    ({"net": [{"type": "vhost-user", "socket": "/sw/a.sock"}]}, []),
    ({"memory": {"size": "64MiB", "path": "/huge"}}, ["/huge"]),
    ({"run": {"writable": ["/backups", "/backups/daily"]}}, ["/backups"]),
]


@pytest.mark.parametrize(("keys", "expected"), TABLE, ids=[str(keys) for keys, _ in TABLE])
def test_what_is_written_has_its_directory(keys: dict[str, object], expected: list[str]) -> None:
    """A file that is only read has none."""
    spec = structure({**VM, **keys}, Path("/"))
    assert writable(spec) == sorted([*ALWAYS, *map(Path, expected)])


def test_what_is_open_already_needs_no_directory() -> None:
    """Only what QEMU opens itself."""
    spec = structure({**VM, "disk": [{"path": "/vm/a.raw"}, {"path": "/other/b.raw"}]}, Path("/"))
    assert writable(spec, {0}) == sorted([*ALWAYS, Path("/other")])


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The place of the image counts."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.raw").touch()
    (tmp_path / "a.raw").symlink_to("images/a.raw")
    spec = structure({**VM, "disk": [{"path": str(tmp_path / "a.raw")}]}, Path("/"))
    assert any((tmp_path / "images").is_relative_to(path) for path in writable(spec))


@given(vm_documents())
def test_none_is_below_another_and_none_is_everything(document: dict[str, object]) -> None:
    """So each is mounted once, and a VM whose disk is in / alone could write anywhere."""
    found = writable(structure(document, Path("/vms")))
    assert not any(above in found for path in found for above in path.parents)
    assert set(ALWAYS) <= set(found) or Path("/") in found
