"""The record of what has been read of a domain, whose elements know their places in its text."""

from __future__ import annotations

from typing import TypeAlias

from kvmhooks.libvirt.edit.text import Element
from kvmhooks.machine.domain_reading import DomainReading

Reading: TypeAlias = DomainReading[Element]
