"""A domain that libvirt has already: its definition read, and given back changed."""

from __future__ import annotations

from kvmhooks.errors import LaunchError
from kvmhooks.libvirt.connection import connected


def dump(uri: str, name: str, *, with_secrets: bool = False) -> bytes:
    """Return the persistent definition of a domain by name or UUID.

    ``with_secrets``: with the passwords in it, without which a definition would lose them
    (``VIR_DOMAIN_XML_SECURE``). Raises ``LaunchError``.
    """
    with connected(uri) as connection:
        import libvirt  # noqa: PLC0415 -- an extra; ``connected`` says so when it is not there

        flags = libvirt.VIR_DOMAIN_XML_INACTIVE
        if with_secrets:
            flags |= libvirt.VIR_DOMAIN_XML_SECURE
        try:
            return str(connection.lookupByName(name).XMLDesc(flags)).encode()
        except libvirt.libvirtError as error:
            raise LaunchError(f"{name}: {error}") from error


def define_again(uri: str, document: bytes) -> None:
    """Define a domain's changed XML, validated. A running VM keeps what it has until it ends.

    Raises ``LaunchError`` when libvirt refuses it; then the old definition stands.
    """
    with connected(uri) as connection:
        import libvirt  # noqa: PLC0415 -- as above

        try:
            connection.defineXMLFlags(document.decode(), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        except libvirt.libvirtError as error:
            raise LaunchError(f"libvirt refused the tuned domain: {error}") from error
