"""The RelaxNG schemas that the installed libvirt checks domains by."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from lxml import etree

DOMAIN = Path("/usr/share/libvirt/schemas/domain.rng")


@cache
def _schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(DOMAIN))


def flaws(document: str | bytes) -> list[str]:
    """Return what the schema has against a domain's XML; an empty list for one that is valid."""
    if not DOMAIN.exists():
        pytest.skip("there is no schema of libvirt here: apt install libvirt-daemon-system")
    text = document.encode() if isinstance(document, str) else document
    schema = _schema()
    schema.validate(etree.fromstring(text))
    return [str(error.message) for error in schema.error_log]
