"""Read a host, or only the parts of it that are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmhooks.host.caches import join
from kvmhooks.host.cpus import read_topologies
from kvmhooks.host.kernel import CpuLists, read_cpu_lists, read_kernel
from kvmhooks.host.kinds import read_pmus, tell_apart
from kvmhooks.host.kvm import read_kvm
from kvmhooks.host.machine import Evidence, assemble, online_cpus
from kvmhooks.host.model import PARTS, Cache, Cpu, Host, Node
from kvmhooks.host.nodes import read_memory, read_nodes
from kvmhooks.host.tree import Tree

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


def read(root: str | os.PathLike[str] = "/", parts: Iterable[str] | None = None) -> Host:
    """Read the host at ``root``: ``/`` or a captured tree.

    ``parts`` are some of ``PARTS``, by default all; what was not asked for is None. «cpus» brings
    the caches and the number of each CPU's node, «nodes» the memory and huge pages too. Raises
    ``HostError`` when there is no host at ``root``, and ``ValueError`` for an unknown part. What is
    wrong with single files is in the ``warnings`` of the result.
    """
    wanted = frozenset(PARTS if parts is None else parts)
    if not wanted <= set(PARTS):
        raise ValueError(f"unknown parts: {', '.join(sorted(wanted - set(PARTS)))}")
    tree = Tree(root)
    cpus: tuple[Cpu, ...] | None = None
    caches: tuple[Cache, ...] | None = None
    nodes: tuple[Node, ...] | None = None
    lists = CpuLists(online=None, isolated=None, nohz_full=None)
    if wanted & {"cpus", "kernel"}:
        lists = read_cpu_lists(tree)
    if wanted & {"cpus", "nodes"}:
        nodes = read_nodes(tree, memory="nodes" in wanted)
    if "cpus" in wanted:
        cpus, caches = _read_cpus(tree, lists, nodes or ())
    return Host(
        cpus=cpus,
        caches=caches,
        nodes=nodes if "nodes" in wanted else None,
        memory=read_memory(tree) if "nodes" in wanted else None,
        kernel=read_kernel(tree, lists) if "kernel" in wanted else None,
        kvm=read_kvm(tree) if "kvm" in wanted else None,
        warnings=tree.flaws.told(),
    )


def _read_cpus(
    tree: Tree, lists: CpuLists, nodes: tuple[Node, ...]
) -> tuple[tuple[Cpu, ...] | None, tuple[Cache, ...] | None]:
    topologies = read_topologies(tree, lists.online)
    if not topologies:
        tree.flaws.add("sys/devices/system/cpu", "holds no CPUs")
        return None, None
    online = online_cpus(topologies, lists)
    caches = join({told.id: told.leaves for told in topologies}, online, tree.flaws)
    frequencies = {told.id: told.max_khz for told in topologies if told.max_khz}
    kinds = tell_apart(read_pmus(tree), frequencies)
    evidence = Evidence(
        topologies=topologies,
        lists=lists,
        online=online,
        caches=caches,
        nodes=nodes,
        kinds=kinds,
    )
    return assemble(evidence, tree.flaws), caches
