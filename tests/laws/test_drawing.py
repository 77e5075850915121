"""A drawing is well-formed XML, whatever a captured tree names its parts."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from kvmhooks.host import Host, read
from kvmhooks.host.drawing import Mark, draw
from kvmhooks.host.picture import picture
from kvmhooks.host.system.system import Processor
from kvmhooks.wording import printable
from tests.fakedevices import FakePci
from tests.fakehost import write_host

NAMES = st.text(st.characters() | st.sampled_from("<&>'\"]\x00\x1b\x9b\ud800\udcff\ufffe\n\t"))


@cache
def host() -> Host:
    """A machine with a network card."""
    with tempfile.TemporaryDirectory() as folder:
        card = FakePci("0000:01:00.0", net=("eth0",))
        return read(str(write_host(Path(folder) / "host", cores=2, pci=(card,))))


@given(NAMES, NAMES, NAMES)
def test_a_drawing_is_well_formed(model: str, card: str, vm: str) -> None:
    """A parser reads it, each name is in it as it can be seen, and it can be written out."""
    there = host()
    named = attrs.evolve(
        there,
        processor=Processor(model_name=model),
        pci=tuple(attrs.evolve(device, net=(card,)) for device in there.pci or ()),
    )
    drawn = draw(named, {0: Mark(vm, "#ffffff")}).encode()
    texts = str(etree.fromstring(drawn).xpath("string()"))
    assert all(printable(name) in texts for name in (model, card, vm))
    assert picture(named)
