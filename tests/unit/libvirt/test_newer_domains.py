"""A domain that a newer libvirt has taken is tuned and replanned, whatever it has in it."""

from __future__ import annotations

import pytest

from kvmhooks.libvirt.tuning.replan import misfit, replan
from kvmhooks.libvirt.tuning.tune import tune
from tests.golden.cases import CASES, HERE, golden_host

NEWER = sorted(
    path.name
    for vm, host in CASES
    if (path := HERE / "expected" / f"{vm}@{host}.xml").exists() and "+" in host
)

ITCO = (
    b"<domain type='kvm'><name>a</name><memory>1048576</memory><vcpu>2</vcpu>"
    b"<os><type machine='pc-q35-9.2'>hvm</type></os><devices>"
    b"<watchdog model='itco' action='reset'/></devices></domain>"
)
"""From 9.1 on libvirt itself puts the chipset's watchdog into each domain of q35."""


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_libvirts_domain_is_placed_anew(name: str) -> None:
    """Its version is no reason against it: it has the domain."""
    host = golden_host(name.partition("@")[2].partition("+")[0])
    document = (HERE / "expected" / name).read_bytes()
    tune(document, host)
    assert misfit(document, host, ()) == ""
    replan(document, host)


def test_the_watchdog_that_libvirt_adds_is_no_obstacle() -> None:
    """It was one: such a domain could not be replanned, nor come in by a migration."""
    host = golden_host("laptop")
    assert len(replan(ITCO, host).pins) == 2
    assert any(change.concern == "cpu" for change in tune(ITCO, host).changes)


def test_a_profile_adds_nothing_that_the_oldest_libvirt_lacks() -> None:
    """A domain that is of 9.1 at least says nothing of SEV-SNP, which is in 10.5."""
    result = tune(ITCO, golden_host("chiplets"), profile="confidential")
    assert b"itco" in result.document
    assert b"<launchSecurity type='sev'>" in result.document
