"""The table: what an expert would choose for kinds of VMs on ten hosts, read from its files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmhooks.spec import VmSpec, parse_vm

HERE = Path(__file__).parent
FILES = sorted((HERE / "hosts").glob("*.toml"))
KINDS = ("gaming", "trading", "database", "nfv", "web", "edge", "spanning", "small12")
"""The kinds that each host has an entry for."""


@dataclass(frozen=True)
class Entry:
    """One kind of VM on one host."""

    kind: str
    vm: str
    """The text of ``vm.toml``; with ``count`` VMs, ``{n}`` stands for the number of each."""
    why: str
    sources: tuple[str, ...]
    must: Mapping[str, Any]
    """Predicates on which experts agree."""
    should: Mapping[str, Any]
    """Predicates that good experts may see otherwise; compared by eye."""
    count: int = 1

    @property
    def specs(self) -> list[VmSpec]:
        """The VMs."""
        return [
            parse_vm(self.vm.replace("{n}", str(number)), folder=Path("/vm"))
            for number in range(1, self.count + 1)
        ]


def read_table(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[Entry]]:
    """Return a host's description, the facts that its entries rely on, and its entries."""
    document = tomllib.loads(path.read_text())
    host, facts = document.pop("host"), document.pop("facts")
    return host, facts, list(entries_of(document))


def entries_of(document: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the entries of a host's file."""
    for kind, described in document.items():
        yield Entry(
            **{
                "must": {},
                "should": {},
                **described,
                "kind": kind,
                "sources": tuple(described["sources"]),
            }
        )
