"""A name for supervisors of a92f6b5, whose VM starts again on a QEMU that was upgraded too.

They keep a verdict for one QEMU of one boot, and load the probe guest when they have none.
"""

from __future__ import annotations

from kvmhooks.kvm.probe import probe

__all__ = ["probe"]
