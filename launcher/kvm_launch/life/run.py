"""A VM from its spec to its end: checked, planned, shown, run, judged."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

from kvm_launch.host.isolation import registry_of
from kvm_launch.life.stop import Stop, run_whole
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare import cloud_init, images
from kvm_launch.prepare.claim_warnings import claim_warnings
from kvm_launch.prepare.planning import accelerator_line, sources_of, tell
from kvm_launch.prepare.preparation import prepare
from kvm_launch.prepare.reservation import Reservation
from kvm_launch.prepare.user import maker_of
from kvm_launch.talk.console import Console
from kvm_launch.talk.tty import guests, is_written
from kvm_launch.tell.outcome import Outcome, as_text, judge
from kvm_launch.tell.screen import Screen
from kvm_launch.tell.screens import screen_of
from kvmhooks.errors import QemuError
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.system.system import System
from kvmhooks.output import document
from kvmhooks.placement.claim import claim
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import plan
from kvmhooks.signals import held_back
from kvmhooks.spec.model import VmSpec
from kvmhooks.survey.survey import take


def run(
    options: LaunchOptions,
    spec: VmSpec,
    system: System | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Run the VM, or with ``--dry-run`` only show what would be; give the exit code.

    ``system`` is the host whose CPUs are isolated: this machine without it. ``ready`` is called
    when the guest runs.
    """
    screen = screen_of(options)
    registry = registry_of(System() if system is None else system)
    inventory = take(sources_of(options, registry.system), spec)
    if options.captured_host is None:
        inventory = prepare(options, spec, inventory, registry)
        screen.line(accelerator_line(spec, inventory))
    tell(inventory)
    if not options.is_dry_run and options.libvirt_uri is None:
        from kvm_launch.life.launch import Launch

        decided, outcome = Launch(options, spec, inventory, registry, ready).run()
        return _told(options, decided, outcome)
    decided = plan(spec, inventory)
    screen.plan(decided)
    if options.is_dry_run or options.libvirt_uri is None:
        tree = options.captured_host
        if tree is not None:
            registry = registry_of(System(str(tree)))
        if tree is None or tree.is_dir():  # no archive has unit files
            for warning in claim_warnings(registry, [claim(decided)]):
                screen.line(f"warning: {warning}")
        if options.is_json:
            from kvmhooks.show.printed import printed

            document(printed(decided, "plan", as_json=True))
        return 0
    return _told(options, decided, _run_in_libvirt(options, options.libvirt_uri, decided, screen))


def run_planned(
    options: LaunchOptions,
    reservation: Reservation,
    inventory: Inventory,
    system: System | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Run a VM that was checked and planned with others; give the exit code."""
    from kvm_launch.life.launch import Launch

    registry = registry_of(System() if system is None else system)
    decided, outcome = Launch(
        options, reservation.plan.spec, inventory, registry, ready, reservation
    ).run()
    return _told(options, decided, outcome)


def _run_in_libvirt(options: LaunchOptions, uri: str, decided: Plan, screen: Screen) -> Outcome:
    """Have libvirt run the VM of a plan, and make before what it needs that is not there yet."""
    from kvm_launch.life.libvirt import follow

    gc.enable()
    spec = decided.spec
    with held_back():
        maker = maker_of(spec)
        images.make(spec, maker)
        cloud_init.make(spec, decided.uuid, maker)
    console = Console(guests(screen.out, "kvm-launch", is_whole=False))
    stop = Stop(options.timeout, spec.shutdown.timeout)
    return judge(decided, run_whole(follow(decided, uri, console=console, stop=stop)))


def _told(options: LaunchOptions, decided: Plan, outcome: Outcome) -> int:
    """Print how it went; give the exit code: no 0 when the document of ``--json`` is lost."""
    if options.is_json:
        print(as_text(outcome))
    screen_of(options).outcome(decided, outcome)
    if options.is_json and not is_written(sys.stdout):
        return max(outcome.exit_code, QemuError.exit_code)
    return outcome.exit_code
