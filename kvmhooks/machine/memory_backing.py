"""The host's memory behind the guest's: its pages, and where they come from."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.spec.model import VmSpec


@frozen(kw_only=True)
class Backing:
    """The kind of the memory's backends, the same for all of them."""

    kind: Literal["ram", "memfd", "file"]
    share: bool
    prealloc: bool


def choose_backing(spec: VmSpec) -> tuple[Backing, tuple[str, ...]]:
    """Return the backend, and why: virtiofsd and vhost-user switches map the guest's memory.

    Explicit huge pages come from a memfd, which needs no mount of hugetlbfs.
    """
    memory = spec.memory
    mapped_by = [f"filesystem[{at}]" for at in range(len(spec.filesystem))]
    mapped_by += [f"net[{at}]" for at, net in enumerate(spec.net) if net.type == "vhost-user"]
    share = bool(mapped_by) if memory.share is None else memory.share
    kind = memory.backend
    if kind == "auto":
        kind = "memfd" if memory.hugepages or share else "ram"
    why = f"memory that can be shared, for {', '.join(mapped_by)}"
    return (
        Backing(
            kind=kind,
            share=share,
            prealloc=bool(memory.hugepages) if memory.prealloc is None else memory.prealloc,
        ),
        (why,) if mapped_by and memory.share is None else (),
    )
