"""The CPUs that systemd was told to keep itself and its services on.

``CPUAffinity=`` of its manager is in systemd-system.conf(5), with the directories of its files; the
kernel's command line wins (systemd(1), ``systemd.cpu_affinity=``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import ValueFormatError
from kvmhooks.host.files.formats import split_lines
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvmhooks.host.files.tree import Tree

_FOLDERS: Final = ("etc/systemd", "run/systemd", "usr/lib/systemd")
"""Those that count most first; of files of one name the first one counts."""
_DROP_IN: Final = re.compile(r"[\w.@-]{1,200}\.conf", re.ASCII)
_LIMIT: Final = 64 * 1024


def read_services(tree: Tree, parameters: Mapping[str, tuple[str, ...]]) -> CpuSet | None:
    """Return the CPUs, None where none are named. Words that are no list are told."""
    texts = parameters.get("systemd.cpu_affinity")
    if texts:
        return _parsed(tree, "proc/cmdline", f"systemd.cpu_affinity={texts[-1]}")
    found: CpuSet | None = None
    for path in _files(tree):
        for words in _settings(tree.text(path, _LIMIT) or ""):
            cpus = _parsed(tree, path, words) if words.partition("=")[2].strip() else None
            found = cpus if cpus is None else cpus | (found or CpuSet())
    return found


def _files(tree: Tree) -> Iterator[str]:
    """Yield the configuration of the manager, then what is dropped in beside it, by name."""
    main = (f"{folder}/system.conf" for folder in _FOLDERS)
    yield from [path for path in main if tree.text(path, _LIMIT) is not None][:1]
    drop_ins: dict[str, str] = {}
    for folder in _FOLDERS:
        directory = tree.directory(f"{folder}/system.conf.d")
        if directory is not None:
            with directory:
                for name in directory.names(_DROP_IN):
                    drop_ins.setdefault(name, f"{folder}/system.conf.d/{name}")
    yield from (drop_ins[name] for name in sorted(drop_ins))


def _settings(text: str) -> Iterator[str]:
    """Yield each ``CPUAffinity=…`` of a file; an empty one takes back those before."""
    section = ""
    for line in map(str.strip, split_lines(text)):
        if line.startswith("["):
            section = line
        key, equals, value = line.partition("=")
        if section == "[Manager]" and equals and key.rstrip() == "CPUAffinity":
            yield f"CPUAffinity={value.strip()}"


def _parsed(tree: Tree, path: str, words: str) -> CpuSet | None:
    """Return the CPUs of ``KEY=CPUS``; ``numa`` for the CPUs of other settings is none."""
    text = words.partition("=")[2].strip()
    if text == "numa":
        return None
    try:
        return CpuSet.parse_words(text)
    except ValueFormatError:
        tree.flaws.add(path, f"{words[:80]} is no list of CPUs")
        return None
