"""Devices that can be given to a VM, and what on this host would be hurt if one were.

``list_devices()`` reads the host's devices and who uses them, and judges each.
"""

from kvmhooks.devices.judgement import Judged, Objection, judge
from kvmhooks.devices.listing import list_devices
from kvmhooks.devices.reading import read_uses
from kvmhooks.devices.uses import Use, Uses

__all__ = ["Judged", "Objection", "Use", "Uses", "judge", "list_devices", "read_uses"]
