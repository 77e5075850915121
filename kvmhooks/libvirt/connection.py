"""A domain in libvirt (https://libvirt.org/html/libvirt-libvirt-domain.html).

libvirt-python is an extra (``pip install kvmhooks[libvirt]``), since it is built against libvirt's
headers: it is imported when a connection is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from kvmhooks.distribution import missing
from kvmhooks.errors import LaunchError, QemuError
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement.model import Plan

CHUNK: Final = 1 << 16


class Domain:
    """A domain that was defined from a plan; libvirt's failures are raised as ``QemuError``."""

    def __init__(self, library: Any, handle: Any, *, is_new: bool) -> None:
        self._library = library
        self._handle = handle
        self._is_new = is_new

    def start_paused(self) -> None:
        """Start it before its first instruction. A new definition goes again if it fails."""
        try:
            with self._translated("could not be started"):
                self._handle.createWithFlags(self._library.VIR_DOMAIN_START_PAUSED)
        except QemuError:
            self.forget()
            raise

    def forget(self) -> None:
        """End it if it runs, and undefine it if it was defined by us."""
        with self._translated("could not be removed"):
            if self._handle.isActive():
                self._handle.destroy()
            if self._is_new:
                self._handle.undefine()

    def process(self) -> int:
        """Return the process id of its QEMU: the one started with its name and UUID."""
        name, uuid = self._handle.name(), self._handle.UUIDString()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if uuid.encode() in words and f"guest={name},debug-threads=on".encode() in words:
                return int(entry.name)
        raise QemuError(f"domain {name}: no QEMU of it is on this host")

    def resume(self) -> None:
        """Let it run."""
        with self._translated("could not be resumed"):
            self._handle.resume()

    def read_console(self) -> Iterator[bytes]:
        """Yield what its console prints, to its end. It blocks: iterate in a thread.

        The console is open when this returns; libvirt keeps nothing of what was printed before.
        """
        with self._translated("has a console that could not be opened"):
            stream = self._handle.connect().newStream()
            self._handle.openConsole(None, stream, 0)
        return self._chunks(stream)

    def _chunks(self, stream: Any) -> Iterator[bytes]:
        try:
            while chunk := stream.recv(CHUNK):
                yield chunk
        except self._library.libvirtError:
            return  # the domain ended: that is how a console's stream says so

    def press_power_button(self) -> None:
        """Ask the guest to power off (ACPI)."""
        with self._translated("could not be shut down"):
            self._handle.shutdownFlags(self._library.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def destroy(self) -> None:
        """End its QEMU."""
        with self._translated("could not be destroyed"):
            self._handle.destroy()

    def is_active(self) -> bool:
        """Return whether it has a QEMU."""
        with self._translated("could not be asked for its state"):
            return bool(self._handle.isActive())

    def ending(self) -> str:
        """Return how it ended: ``shutdown`` by its guest, ``destroyed``, ``crashed``, or so."""
        library = self._library
        with self._translated("could not be asked for its state"):
            _, reason = self._handle.state()
        words = {
            library.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "shutdown",
            library.VIR_DOMAIN_SHUTOFF_DESTROYED: "destroyed",
            library.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed",
            library.VIR_DOMAIN_SHUTOFF_FAILED: "failed",
        }
        return words.get(reason, f"reason {reason}")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._library.libvirtError as error:
            raise QemuError(f"domain {self._handle.name()} {what}: {error}") from error


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """Give a connection to the libvirtd of ``uri``, closed at the end.

    Raises ``LaunchError`` without libvirt-python and for another host's libvirtd (threads are read
    from this host's ``/proc``), ``QemuError`` when nobody answers.
    """
    try:
        import libvirt  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise LaunchError(f"libvirt: {missing('libvirt')}") from error
    if urlsplit(uri).hostname is not None:
        raise LaunchError(f"libvirt: found {uri!r}, expected the URI of a libvirtd on this host")
    # libvirt-python prints every error on stderr by itself, unless a handler takes it.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise QemuError(f"libvirt: {uri}: {error}") from error
    try:
        yield connection
    finally:
        connection.close()


def define(connection: Any, plan: Plan) -> Domain:
    """Define the domain of ``plan``, or define it anew.

    libvirt validates the XML against its own schema. Raises ``LaunchError`` when a domain of the
    name has another UUID or runs, or libvirt refuses the XML.
    """
    import libvirt  # noqa: PLC0415 -- an extra

    try:
        others = [
            other
            for other in connection.listAllDomains()
            if plan.name == other.name() or plan.uuid == other.UUIDString()
        ]
        for other in others:
            if (plan.name, plan.uuid) != (other.name(), other.UUIDString()):
                raise LaunchError(
                    f"name: libvirt has a domain {other.name()!r} of UUID {other.UUIDString()}, "
                    f"expected {plan.name!r} of {plan.uuid}: give it as uuid, or another name"
                )
            if other.isActive():
                raise LaunchError(f"name: found {plan.name!r}, expected a domain that is shut off")
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE
        handle = connection.defineXMLFlags(domain_xml(plan), flags)
    except libvirt.libvirtError as error:
        raise LaunchError(f"libvirt refused the domain: {error}") from error
    return Domain(libvirt, handle, is_new=not others)
