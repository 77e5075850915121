"""Images that whoever starts QEMU has opened: QEMU knows them by number, not by path.

A descriptor that QEMU inherits is in a set of its own (``-add-fd``), and the set has a name that
stands for a file's (``/dev/fdset/SET``; qapi/misc.json, util/osdep.c: ``qemu_open_internal()``). An
image that is built on others does not name them to QEMU then, so they are nodes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from attrs import frozen


@frozen
class Opened:
    """An image that is open."""

    number: int
    """Its descriptor in QEMU."""
    format: str
    """raw or qcow2."""
    is_block_device: bool = False


def with_opened(argv: Sequence[str], images: Mapping[int, Sequence[Opened]]) -> list[str]:
    """Return QEMU's arguments with images by their numbers.

    ``images`` has, for a disk by its index, its own image, then the one that it is built on, and so
    on. Raises ``ValueError`` for a disk that the arguments do not have.
    """
    words = list(argv)
    for index, layers in images.items():
        name = f"disk{index}"
        at, file = _node(words, f"{name}-file")
        words[at] = _json({**file, "filename": _set(layers[0])})
        place, image = _node(words, f"{name}-format")
        below = [f"{name}-base{depth}" for depth in range(1, len(layers))]
        if layers[0].format == "qcow2":
            image["backing"] = below[0] if below else None
        words[place] = _json(image)
        words[place - 1 : place - 1] = _bases(layers[1:], below, file)
        words[at - 1 : at - 1] = [word for layer in layers for word in _added(layer)]
    return words


def _bases(layers: Sequence[Opened], names: Sequence[str], above: dict[str, Any]) -> list[str]:
    """Return the nodes of what an image is built on, the lowest first: read only, cached alike."""
    words: list[str] = []
    common = {"read-only": True, "cache": above["cache"]}
    for layer, name, below in zip(layers, names, [*names, None][1:], strict=True):
        driver = "host_device" if layer.is_block_device else "file"
        file = {"driver": driver, "node-name": f"{name}-file", "filename": _set(layer)}
        image: dict[str, Any] = {"driver": layer.format, "node-name": name, "file": f"{name}-file"}
        if layer.format == "qcow2":
            image["backing"] = below
        nodes = [{**file, "aio": above["aio"], **common}, {**image, **common}]
        words = [*(word for node in nodes for word in ("-blockdev", _json(node))), *words]
    return words


def _node(words: Sequence[str], name: str) -> tuple[int, dict[str, Any]]:
    """Return where the node is in the arguments, and what is said of it."""
    for at, (option_, word) in enumerate(pairwise(words), 1):
        if option_ == "-blockdev" and (node := json.loads(word))["node-name"] == name:
            return at, node
    raise ValueError(f"{name}: found no such node in QEMU's arguments")


def _added(layer: Opened) -> tuple[str, str]:
    return "-add-fd", f"fd={layer.number},set={layer.number}"


def _set(layer: Opened) -> str:
    return f"/dev/fdset/{layer.number}"


def _json(document: dict[str, Any]) -> str:
    """Return the JSON of one node; what is null says that there is none."""
    return json.dumps(document, separators=(",", ":"))
