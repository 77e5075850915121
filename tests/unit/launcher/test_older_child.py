"""The words with which supervisors of before start QEMU again, after an upgrade."""

from __future__ import annotations

import pytest

from kvm_launch.child import translated

BEGIN = ["7", "4711", "drop", "", "", "0", "1", "us:64:2:/srv/a.img"]
END = ["1", "/dev/vfio/5", "/usr/bin/qemu-system-x86_64", "-name", "a"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["0"], ["0"]),
        (["2", "/srv", "/run/kvm"], ["2", "us:/srv", "us:/run/kvm"]),
        (["2", "us:/srv", "user:/home/u"], ["2", "us:/srv", "user:/home/u"]),
    ],
    ids=["no directory", "a92f6b5", "b52323f"],
)
def test_a_directory_is_told_with_who_opens_it(theirs: list[str], ours: list[str]) -> None:
    """All else stays: what QEMU opens, its devices, and its own words."""
    assert translated([*BEGIN, *theirs, *END]) == [*BEGIN, *ours, *END]
