"""The command line of kvm-launch: parse, call, print."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvm_launch.talk.tty import outliving
from kvmhooks.errors import UsageError
from kvmhooks.exits import exit_code_of, told_codes
from kvmhooks.output import document
from kvmhooks.version import VERSION

if TYPE_CHECKING:
    from kvm_launch.options import LaunchOptions
    from kvmhooks.isolate.system.system import System
    from kvmhooks.spec import VmSpec

EXAMPLES: Final = f"""\
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
{told_codes()}"""
PRINTABLE: Final = ("argv", "xml", "plan", "claim")
VERBS: Final = ("ps", "status", "stop", "qmp", "console", "set", "reload")
"""The commands for VMs that run; a file of such a name is given as ./ps."""

MIGRATE: Final = "migrate"
_WITHOUT: Final = {"print": None, "dry_run": False, "libvirt": None, "host": None, "json": False}
"""The options that ``migrate`` cannot be given: the VM runs already, and here."""

ALONE: Final = {
    "--detach": ("--libvirt", "--json", "--print", "--dry-run"),
    "--console": ("--detach", "--libvirt", "--json", "--print", "--dry-run"),
    "--dry-run": ("--print",),
    "--quiet": ("--print",),
    "--run-dir": ("--host",),
    "--timeout": ("--print", "--dry-run"),
}
"""The options that would do nothing beside others: nothing is started, or nobody is there."""

FOR_ONE: Final = frozenset({"--console", "--libvirt", "--json", "--print", "--host"})
"""The options that several VMs cannot be given."""

SYSTEM: Final = "qemu:///system"


def main(argv: Sequence[str] | None = None, system: System | None = None) -> int:
    """Run kvm-launch and give its exit code. Every failure is one message on stderr.

    ``system`` is the host whose CPUs are isolated: this machine without it.
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
                lambda: _interruptible(arguments, system),
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


def _interruptible(arguments: argparse.Namespace, system: System | None) -> int:
    from kvmhooks.signals import interrupt

    interrupt()
    _check_together(_given(arguments))
    if arguments.console and not sys.stdin.isatty():
        raise UsageError("--console: found no terminal to type at, expected one")
    is_one = len(arguments.vm) == 1 and not arguments.vm[0].is_dir()
    if arguments.migrate and not is_one:
        raise UsageError("migrate: found a folder, expected the file of one VM that runs")
    if not is_one:
        if found := _given(arguments) & FOR_ONE:
            raise UsageError(f"{min(found)}: found several VMs, expected the file of one")
        return _several(arguments.vm, _options_of(arguments), system)
    (path,) = arguments.vm
    options = _options_of(arguments)
    if not options.is_detached:
        return _launch(path, options, system)
    from kvm_launch.life.detach import detached

    return detached(lambda ready: _launch(path, options, system, ready))


def _given(arguments: argparse.Namespace) -> frozenset[str]:
    """Return the options that were given, as they are written."""
    return frozenset(
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if value is not None and value is not False
    )


def _check_together(given: frozenset[str]) -> None:
    """Raise ``UsageError`` for an option that would do nothing beside another one."""
    for option, others in ALONE.items():
        if option in given and (found := [other for other in others if other in given]):
            raise UsageError(f"{option}: found {found[0]} beside it, expected one of the two")


def _options_of(arguments: argparse.Namespace) -> LaunchOptions:
    from kvm_launch.options import LaunchOptions

    return LaunchOptions(
        accel=arguments.accel,
        captured_host=arguments.host,
        libvirt_uri=arguments.libvirt,
        printed=arguments.print,
        is_dry_run=arguments.dry_run,
        is_json=arguments.json,
        is_quiet=arguments.quiet,
        has_console=arguments.console,
        is_detached=arguments.detach,
        is_migration=arguments.migrate,
        run_dir=arguments.run_dir,
        timeout=arguments.timeout,
    )


def _several(paths: Sequence[Path], options: LaunchOptions, system: System | None) -> int:
    """Run several VMs."""
    from kvm_launch.many.together import files_of, load_all, run_many

    files = files_of(paths)
    specs = [_with_accel(spec, options) for spec in load_all(files)]
    return run_many(options, specs, system)


def _verb(verb: str, words: Sequence[str]) -> int:
    from kvm_launch.commands.verbs import main as carry_out

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
    sockets = "where the VM's sockets are: VMs count that run below it, or below the user's own"
    add("--run-dir", metavar="DIR", type=Path, help=sockets)
    add("--console", action="store_true", help="type to the guest; Ctrl-] leaves it")
    add("--quiet", action="store_true", help="say nothing but what went wrong")
    add("--detach", action="store_true", help="leave it in the background once it runs")
    add("--version", action="version", version=f"kvm-launch {VERSION}")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return the formatter. The width is given, or argparse loads shutil to ask the terminal."""
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
    path: Path,
    options: LaunchOptions,
    system: System | None,
    ready: Callable[[], None] | None = None,
) -> int:
    if options.captured_host is not None and not (options.printed or options.is_dry_run):
        raise UsageError("--host: another host's plan cannot run here: add --print or --dry-run")
    from kvmhooks.spec import load_vm

    spec = _with_accel(load_vm(path), options)
    if options.has_console and spec.console.type == "none":
        raise UsageError('--console: found console.type = "none", expected a console to type at')
    if options.printed is not None:
        return _print(options.printed, options, spec)
    from kvm_launch.life.run import run

    return run(options, spec, system, ready)


def _with_accel(spec: VmSpec, options: LaunchOptions) -> VmSpec:
    if options.accel is None:
        return spec
    import attrs

    return attrs.evolve(spec, machine=attrs.evolve(spec.machine, accel=options.accel))


def _print(form: str, options: LaunchOptions, spec: VmSpec) -> int:
    from kvm_launch.prepare.planning import plan_to_print
    from kvmhooks.show.printed import printed, untold

    plan = plan_to_print(spec, options)
    tell = sys.stdout.write if form == "plan" else document
    tell(printed(plan, form, as_json=options.is_json))
    for sentence in untold(plan, form):
        print(f"warning: {sentence}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
