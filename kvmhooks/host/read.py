"""Read a host, or only the parts of it that are asked for.

A part that is not asked for is not imported either: a launcher that plans for CPUs and nodes does
not pay for PCI.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from kvmhooks.host.cpu.caches import join
from kvmhooks.host.cpu.cpus import read_topologies
from kvmhooks.host.cpu.kinds import read_pmus, tell_apart
from kvmhooks.host.cpu.nodes import read_memory, read_nodes, read_offline
from kvmhooks.host.cpu.policies import read_policies
from kvmhooks.host.cpu.topology import Evidence, assemble, online_cpus
from kvmhooks.host.files.lists import NO_LISTS, read_cpu_lists
from kvmhooks.host.files.tree import Tree
from kvmhooks.host.model import PARTS, Host

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvmhooks.host.files.lists import CpuLists
    from kvmhooks.host.files.tree import Recorder
    from kvmhooks.host.frequency import FrequencyPolicy
    from kvmhooks.host.model import Cache, Cpu, Node
    from kvmhooks.host.resources import Features

_READERS: Final = {
    "pci": ("bus.pci", "read_pci"),
    "irqs": ("bus.irqs", "read_irqs"),
    "kvm": ("system.kvm", "read_kvm"),
    "cgroup": ("system.cgroup", "read_cgroup"),
    "resctrl": ("system.resctrl", "read_resctrl"),
    "processor": ("cpu.processor", "read_processor"),
    "iommu": ("bus.iommu", "read_iommu"),
}
"""The parts that stand alone: a module, and the function of it that reads one."""

_FIELDS: Final = {"cpus": ("cpus", "caches"), "nodes": ("nodes", "offline_nodes", "memory")}
"""The fields that a part brings; the others bring the field of their name."""

_FOR_FEATURES: Final = frozenset({"cpus", "nodes", "pci", "kvm", "resctrl", "processor", "iommu"})


def read(root: str | os.PathLike[str] = "/", parts: Iterable[str] | None = None) -> Host:
    """Read the host at ``root``: ``/``, a captured tree, or a tar file of one.

    ``parts`` are some of ``PARTS``, by default all; what was not asked for is None. «cpus» brings
    the caches and the number of each CPU's node, «nodes» the memory and huge pages too. Raises
    ``HostError`` when there is no host at ``root``, and ``ValueError`` for an unknown part. Flaws
    of single files are in the ``warnings`` of the result.
    """
    wanted = frozenset(PARTS if parts is None else parts)
    if not wanted <= set(PARTS):
        raise ValueError(f"unknown parts: {', '.join(sorted(wanted - set(PARTS)))}")
    return read_tree(open_tree(root), wanted)


def open_tree(root: str | os.PathLike[str] = "/", recorder: Recorder | None = None) -> Tree:
    """Open the files of a host: of ``/``, of a captured tree, or of a tar file of one.

    Raises ``HostError`` when there is no host at ``root``.
    """
    if os.path.isfile(root):  # noqa: PTH113 -- pathlib is not loaded for a question
        top = _import("files.archive").read_archive(root)
        packed: Tree = _import("files.packed").PackedTree(top, root, recorder)
        return packed
    return Tree(root, recorder)


def read_tree(tree: Tree, wanted: frozenset[str] = frozenset(PARTS)) -> Host:
    """Read parts of an open tree."""
    needed = wanted | _FOR_FEATURES if "features" in wanted else wanted
    host = _read_machine(tree, needed)
    host = evolve(
        host,
        **{
            part: getattr(_import(module), reader)(tree)
            for part, (module, reader) in _READERS.items()
            if part in needed
        },
    )
    features = _tell_features(tree, host) if "features" in wanted else None
    unwanted = {field: None for part in needed - wanted for field in _FIELDS.get(part, (part,))}
    return evolve(host, features=features, warnings=tree.flaws.told(), **unwanted)


def _read_machine(tree: Tree, needed: frozenset[str]) -> Host:
    """Read the parts that share files with each other."""
    lists, nodes, policies = NO_LISTS, None, None
    if needed & {"cpus", "kernel", "power"}:
        lists = read_cpu_lists(tree)
    if needed & {"cpus", "nodes"}:
        nodes = read_nodes(tree, memory="nodes" in needed)
    if needed & {"cpus", "power"}:
        policies = read_policies(tree, whole="power" in needed)
    cpus = caches = power = kernel = None
    if "cpus" in needed:
        cpus, caches = _read_cpus(tree, lists, nodes or (), policies or ())
    if "power" in needed:
        power = _import("cpu.power").read_power(tree, policies, lists.online)
    if "kernel" in needed:
        kernel = _import("system.kernel").read_kernel(tree, lists)
    return Host(
        cpus=cpus,
        caches=caches,
        nodes=nodes if "nodes" in needed else None,
        offline_nodes=read_offline(tree) if "nodes" in needed else None,
        memory=read_memory(tree) if "nodes" in needed else None,
        kernel=kernel,
        power=power,
    )


def _read_cpus(
    tree: Tree,
    lists: CpuLists,
    nodes: Sequence[Node],
    policies: Sequence[FrequencyPolicy],
) -> tuple[tuple[Cpu, ...] | None, tuple[Cache, ...] | None]:
    topologies = read_topologies(tree, lists.online, frequencies=not policies)
    if not topologies:
        tree.flaws.add("sys/devices/system/cpu", "holds no CPUs")
        return None, None
    online = online_cpus(topologies, lists)
    caches = join({told.id: told.leaves for told in topologies}, online, tree.flaws)
    policy_of = {cpu: policy for policy in policies for cpu in policy.cpus or ()}
    evidence = Evidence(
        topologies=topologies,
        lists=lists,
        online=online,
        caches=caches,
        nodes=nodes,
        policies=policy_of,
    )
    cpus = assemble(evidence, tree.flaws)
    kinds = tell_apart(read_pmus(tree), cpus)
    if kinds:
        cpus = tuple(evolve(cpu, kind=kinds.get(cpu.id)) for cpu in cpus)
    return cpus, caches


def _tell_features(tree: Tree, host: Host) -> Features:
    irqbalance = _import("system.services").is_irqbalance_running(tree)
    told: Features = _import("features").tell(host, irqbalance=irqbalance)
    return told


def _import(name: str) -> Any:
    return import_module(f"kvmhooks.host.{name}")
