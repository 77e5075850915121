"""The command line of kvm-launch: parse, call, print."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from kvm_launch.outlive import outliving
from kvmhooks.errors import UsageError
from kvmhooks.exits import exit_code_of
from kvmhooks.output import document
from kvmhooks.version import VERSION

if TYPE_CHECKING:
    from kvmhooks.isolate.door import Door
    from kvmhooks.spec import VmSpec

EXAMPLES: Final = """\
examples:
  kvm-launch vm.toml                       boot the VM and follow it to its end
  kvm-launch --dry-run vm.toml             check everything, show the plan, start nothing
  kvm-launch --print xml vm.toml           the libvirt domain XML of the same VM
  kvm-launch --print argv --host tree vm.toml
                                           QEMU's arguments on another, captured host
  kvm-launch --libvirt vm.toml             define and start it in libvirt instead
  kvm-launch a.toml b.toml folder/         run several until all have ended
  kvm-launch --detach vm.toml              leave it in the background once it runs
  kvm-launch ps                            the VMs that run
  kvm-launch status|stop|console NAME      one of them: Ctrl-] leaves its console
  kvm-launch qmp NAME query-status         ask its QEMU something
  kvm-launch set NAME vcpu.0=5 balloon=1GiB
                                           change it while it runs; reload plans its pins anew
  kvm-launch migrate vm.toml               plan it anew, and have its guest come while it runs

exit codes:
  0 the guest powered off and all was as planned   1 refused, nothing was changed
  2 usage                                          3 QEMU failed, or not as planned
  4 the host could not be restored completely
"""
PRINTABLE: Final = ("argv", "xml", "plan", "claim")
VERBS: Final = ("ps", "status", "stop", "qmp", "console", "set", "reload")
"""The commands for VMs that run; a file of such a name is given as ./ps."""

MIGRATE: Final = "migrate"
_WITHOUT: Final = {"print": None, "dry_run": False, "libvirt": None, "host": None, "json": False}
"""What ``migrate`` cannot be asked for: the VM runs already, and here."""

SYSTEM: Final = "qemu:///system"


def main(argv: Sequence[str] | None = None, door: Door | None = None) -> int:
    """Run kvm-launch and give its exit code. Every failure is one message on stderr.

    ``door`` is the host whose CPUs are isolated: this machine without it.
    """
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in VERBS:
        return exit_code_of(lambda: _verb(words[0], words[1:]), interrupted="interrupted")
    arguments = argparse.Namespace(migrate=words[:1] == [MIGRATE])
    code = exit_code_of(lambda: _parse(words, arguments), interrupted="interrupted")
    if code:
        return code
    runs = not (arguments.print or arguments.dry_run)
    try:
        with outliving() if runs else nullcontext():
            return exit_code_of(
                lambda: _interruptible(arguments, door),
                interrupted="interrupted: nothing is running, nothing was left behind",
            )
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: just end


def _parse(words: Sequence[str], arguments: argparse.Namespace) -> int:
    """Set what the command line says; return 0. Raises ``SystemExit`` where argparse answers."""
    if arguments.migrate:
        vars(arguments).update(_WITHOUT)
        parser_of_migrate().parse_args(words[1:], arguments)
    else:
        parser_of().parse_args(_with_uri(words), arguments)
    return 0


def _interruptible(arguments: argparse.Namespace, door: Door | None) -> int:
    from kvmhooks.live.signals import interrupt

    interrupt()
    is_special = arguments.libvirt or arguments.json or arguments.print or arguments.dry_run
    if arguments.detach and is_special:
        raise UsageError("--detach: found --libvirt, --json, --print or --dry-run beside it")
    if arguments.console and (is_special or arguments.detach or not sys.stdin.isatty()):
        raise UsageError(
            "--console: found no terminal to type at, or --detach, --libvirt, --json, --print or "
            "--dry-run beside it"
        )
    is_one = len(arguments.vm) == 1 and not arguments.vm[0].is_dir()
    if arguments.migrate and not is_one:
        raise UsageError("migrate: found a folder, expected the file of one VM that runs")
    if not is_one:
        if (
            arguments.console
            or arguments.libvirt
            or arguments.json
            or arguments.print
            or arguments.host is not None
        ):
            raise UsageError(
                "found several VMs, expected one beside --console, --libvirt, --json, --print or "
                "--host"
            )
        return _several(arguments, door)
    (arguments.vm,) = arguments.vm
    if not arguments.detach:
        return _launch(arguments, door)
    from kvm_launch.detach import detached

    return detached(lambda ready: _launch(arguments, door, ready))


def _several(arguments: argparse.Namespace, door: Door | None) -> int:
    """Run several VMs."""
    from kvm_launch.many import files_of, load_all, run_many

    files = files_of(arguments.vm)
    if not files:
        raise UsageError(f"{arguments.vm[0]}: found no NAME.toml in it, expected one for each VM")
    specs = [_with_accel(spec, arguments.accel) for spec in load_all(files)]
    return run_many(arguments, specs, door)


def _verb(verb: str, words: Sequence[str]) -> int:
    from kvm_launch.verbs import main as carry_out

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return carry_out(verb, words)


def parser_of() -> argparse.ArgumentParser:
    """Return the command line without a verb."""
    parser = argparse.ArgumentParser(
        prog="kvm-launch",
        description="Boot the VM that a vm.toml describes, tuned for this host.",
        epilog=EXAMPLES,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("vm", metavar="VM.toml", type=Path, nargs="+", help="a VM's description, or a folder")
    add("--print", choices=PRINTABLE, metavar="WHAT", help="print argv, xml, plan or claim")
    add("--dry-run", action="store_true", help="check, show the plan, and start nothing")
    add("--libvirt", metavar="URI", help=f"--libvirt[=URI]: run it there ({SYSTEM})")
    add(
        "--host", metavar="DIR|FILE.tar", type=Path, help="plan for a captured host; starts nothing"
    )
    add("--json", action="store_true", help="print JSON; a guest's console goes to stderr")
    _add_common(add)
    return parser


def parser_of_migrate() -> argparse.ArgumentParser:
    """Return the command line of ``migrate``."""
    parser = argparse.ArgumentParser(
        prog=f"kvm-launch {MIGRATE}",
        description="Plan a VM that runs anew, and have its guest come here.",
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "vm", metavar="VM.toml", type=Path, nargs=1, help="the description of a VM that runs"
    )
    _add_common(parser.add_argument)
    return parser


def _add_common(add: Callable[..., object]) -> None:
    """Add what a VM that starts and one that arrives may be given."""
    add("--accel", choices=("auto", "kvm", "tcg"), help="instead of what the file says")
    add("--timeout", metavar="SECONDS", type=_seconds, help="stop the VM after this time")
    add("--run-dir", metavar="DIR", type=Path, help="where the VM's sockets are")
    add("--console", action="store_true", help="type to the guest; Ctrl-] leaves it")
    add("--quiet", action="store_true", help="say nothing but what went wrong")
    add("--detach", action="store_true", help="leave it in the background once it runs")
    add("--version", action="version", version=f"kvm-launch {VERSION}")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Lines as they stand. The width is given, or argparse loads shutil to ask the terminal."""
    return argparse.RawDescriptionHelpFormatter(prog, width=96)


def _with_uri(argv: Sequence[str]) -> list[str]:
    """Spell out a bare ``--libvirt``: its value may only follow after ``=``."""
    return [f"--libvirt={SYSTEM}" if word == "--libvirt" else word for word in argv]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds such as 90")
    return seconds


def _launch(
    arguments: argparse.Namespace, door: Door | None, ready: Callable[[], None] | None = None
) -> int:
    if arguments.host is not None and not (arguments.print or arguments.dry_run):
        raise UsageError("--host: another host's plan cannot run here: add --print or --dry-run")
    from kvmhooks.spec import load_vm

    spec = _with_accel(load_vm(arguments.vm), arguments.accel)
    if arguments.print:
        return _print(arguments, spec)
    from kvm_launch.run import run

    return run(arguments, spec, door, ready)


def _with_accel(spec: VmSpec, accel: Literal["auto", "kvm", "tcg"] | None) -> VmSpec:
    if accel is None:
        return spec
    import attrs

    return attrs.evolve(spec, machine=attrs.evolve(spec.machine, accel=accel))


def _print(arguments: argparse.Namespace, spec: VmSpec) -> int:
    from kvm_launch.planning import plan_to_print
    from kvmhooks.render.printed import printed

    plan = plan_to_print(spec, arguments)
    tell = sys.stdout.write if arguments.print == "plan" else document
    tell(printed(plan, arguments.print, as_json=arguments.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
