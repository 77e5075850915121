"""Make the manual pages and the completions of shells: of the parsers, and of the schema.

    python docs/build.py          write docs/man and docs/completion
    python docs/build.py --check  exit 1 if something else should stand there

They are installed from there (``data_files`` in setup.cfg); a test runs the check. Their source is
what argparse's own help and ``kvmhooks schema`` are made of.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import shtab

from kvm_launch.commands import main as launch
from kvm_launch.commands import verbs
from kvmhooks.cli.main import VERBS
from kvmhooks.exits import CODES
from kvmhooks.spec.schema import schema

HERE: Final = Path(__file__).parent

DOES: Final = {
    "kvmhooks": "plan, render, tune and isolate KVM guests",
    "kvm-launch": "boot a VM that a vm.toml describes, tuned for this host",
    "vm.toml": "the description of a virtual machine",
}

KVMHOOKS: Final = """\
kvmhooks reads a host, plans where virtual machines live on it, and says so: as libvirt domain XML,
as arguments of QEMU, or as a picture. Its hook isolates the CPUs of a VM from the host for as long
as it lives, and gives everything back."""

VM_TOML: Final = """\
A VM is described by a file in TOML. Nothing in it is coerced, an unknown key is refused, and all
that is wrong is told at once. Sizes are written with KiB, MiB, GiB or TiB; CPUs and nodes as lists
such as "0-3,8". Relative paths start at the folder of the file. The text of a key that is true or
false says what true means. kvmhooks schema prints the same as a JSON Schema."""

FILES: Final = {
    "kvmhooks": {
        "/etc/libvirt/hooks/qemu.d": "the hook",
        "/etc/kvmhooks/kvmhooks.toml": "limits and defaults of this host; budget of [host] (10) "
        "bounds, in seconds, the waiting and the writing of each call of the hook and each command",
        "/etc/kvmhooks/disabled": "while it is there nothing is isolated",
        "/run/kvmhooks/state.json": "the holdings of VMs, and the values before them",
        "/run/kvmhooks/waiter": "the process that waits for what stopped VMs have left",
    },
    "kvm-launch": {
        "/run/kvm-launch, $XDG_RUNTIME_DIR/kvm-launch": "a directory for each VM that runs: of "
        "root, and of a user; --run-dir names another. Only the user who started the VM and root "
        "can open the sockets in it, and a command is for the VMs of its own user",
        "NAME/supervise.sock": "the requests of set and reload to the VM's supervisor, which "
        "answers up to 16 clients, one after the other",
        "NAME/qmp-user.sock": "QEMU's second monitor, for qmp: QMP, with one client at a time. "
        "While another one has it, qmp waits for 5 s, says so and exits with 3. The first "
        "monitor, qmp.sock, is the supervisor's alone",
        "NAME/console.sock": "the guest's console, unless console.type is none: its bytes, both "
        "ways, for up to 16 clients at a time; the next one is told so and let go of. Each sees "
        "the last 16 KiB first, then the same as all others, and what one types goes to the guest",
        "NAME/status.json": "the answers of ps and status",
        "/etc/kvm-launch/NAME.toml": "the VM of kvm-launch@NAME.service",
    },
}

SEE_ALSO: Final = {
    "kvmhooks": "kvm-launch(1), vm.toml(5), virsh(1)",
    "kvm-launch": "kvmhooks(1), vm.toml(5), qemu-system-x86_64(1)",
    "vm.toml": "kvm-launch(1), kvmhooks(1)",
}

RUNNING: Final = "kvm-launch ps 2>/dev/null | awk 'NR > 1 { print $1 }'"

NAMES: Final = {
    "bash": f'_kvm_launch_names() {{ compgen -W "$({RUNNING})" -- "$1"; }}',
    "zsh": f'_kvm_launch_names() {{ compadd -- ${{(f)"$({RUNNING})"}} }}',
    "fish": f"function _kvm_launch_names; {RUNNING}; end",
}
"""The command that a shell runs to know the VMs that run."""

NAME: Final = {
    "bash": "_kvm_launch_names",
    "zsh": "_kvm_launch_names",
    "fish": "(_kvm_launch_names)",
}

FILE: Final = {**shtab.FILE, "fish": "(__fish_complete_path)"}

SUFFIXES: Final = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def main() -> int:
    """Write, or compare; 1 when something differs."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="docs/build.py", description=about, allow_abbrev=False)
    help_ = "write nothing; exit 1 if something else should stand there"
    parser.add_argument("--check", action="store_true", help=help_)
    is_check = parser.parse_args().check
    made = dict(pages()) | dict(completions())
    if not is_check:
        for path, text in made.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return 0
    there = {path: path.read_text() for path in HERE.glob("*/*") if path.is_file()}
    for path in sorted(made.keys() ^ there.keys()):
        print(f"{path}: {'found' if path in there else 'expected'} a file", file=sys.stderr)
    for path in sorted(made.keys() & there.keys()):
        if made[path] != there[path]:
            print(f"{path}: not as `python docs/build.py` writes it", file=sys.stderr)
    return int(made != there)


def kvmhooks() -> argparse.ArgumentParser:
    """Return all of kvmhooks as one parser."""
    parser = argparse.ArgumentParser(prog="kvmhooks", description=KVMHOOKS, add_help=False)
    commands = parser.add_subparsers(metavar="VERB")
    for verb, (module, does) in VERBS.items():
        add(commands, verb, importlib.import_module(module).parser_of(verb), does)
    return parser


def kvm_launch() -> argparse.ArgumentParser:
    """Return all of kvm-launch as one parser; a file may stand where a verb does."""
    plain = launch.parser_of()
    parser = argparse.ArgumentParser(
        prog="kvm-launch", description=plain.description, epilog=launch.EXAMPLES, add_help=False
    )
    for action in plain._actions:
        if action.option_strings:
            parser._add_action(action)
    commands = parser.add_subparsers(metavar="VM.toml|VERB")
    for verb in launch.VERBS:
        add(commands, verb, verbs.parser_of(verb), verbs.VERBS[verb].__doc__ or "")
    arriving = launch.parser_of_migrate()
    add(commands, launch.MIGRATE, arriving, arriving.description or "")
    return parser


def add(commands: Any, verb: str, parser: argparse.ArgumentParser, does: str) -> None:
    """Add a verb's own parser to those of a command."""
    for action in parser._actions:
        if action.metavar == "NAME" and not action.option_strings and verb in launch.VERBS:
            action.complete = NAME  # type: ignore[attr-defined]
        elif action.metavar in {"FILE", "DIR", "VM.toml", "DOMAIN.xml", "DIR|FILE.tar"}:
            action.complete = FILE  # type: ignore[attr-defined]
    commands.add_parser(
        verb,
        parents=[parser],
        add_help=False,
        help=does,
        description=parser.description or does,
        epilog=parser.epilog,
    )


def completions() -> Iterator[tuple[Path, str]]:
    """Yield the scripts for each shell."""
    for parser in (kvmhooks(), kvm_launch()):
        for shell, name in SUFFIXES.items():
            preamble: Any = NAMES if parser.prog == "kvm-launch" else ""  # by shell
            text = shtab.complete(parser, shell, preamble=preamble)
            # Where nothing else fits it is a file: a VM's.
            text = text.replace(
                "complete -o bashdefault -F", "complete -o bashdefault -o default -F"
            )
            path = HERE / "completion" / name.format(parser.prog)
            yield path, re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the manual pages."""
    for parser in (kvmhooks(), kvm_launch()):
        text = "\n".join(page_of(parser)) + "\n"
        yield HERE / f"man/{parser.prog}.1", text
    yield HERE / "man/vm.toml.5", "\n".join(page_of_the_format(schema())) + "\n"


def page_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a page of section 1 (man(7))."""
    yield from head(parser.prog, 1)
    yield ".SH SYNOPSIS"
    commands = next(action for action in parser._actions if isinstance(action.choices, dict))
    if parser.prog == "kvm-launch":
        yield rf".B {quoted(parser.prog)}"
        yield r"[\fIOPTION\fR ...] \fIVM.toml\fR ..."
        yield ".br"
    yield rf".B {quoted(parser.prog)}"
    yield r"\fIVERB\fR [\fIOPTION\fR ...]"
    yield ".SH DESCRIPTION"
    yield plain(parser.description or "")
    options = [action for action in parser._actions if action.option_strings]
    if options:
        yield ".SH OPTIONS"
        yield from entries(options)
    yield ".SH VERBS"
    for verb, command in commands.choices.items():  # type: ignore[union-attr]
        yield f".SS {quoted(f'{parser.prog} {verb}')}"
        usage = command.format_usage().split(None, 3)[3:]
        yield from [rf"\fI{quoted(' '.join(usage[0].split()))}\fR", ".PP"] if usage else []
        yield plain(command.description)
        yield from entries(
            [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
        )
        yield from verbatim(command.epilog)
    yield ".SH EXAMPLES"
    examples, _, _ = (parser.epilog or "kvmhooks plan vm.toml").partition("\nexit codes:\n")
    yield from verbatim(examples.removeprefix("examples:\n"))
    yield ".SH EXIT STATUS"
    for code, _, meaning in CODES:
        yield from entry(str(code), meaning)
    yield ".SH FILES"
    for path, what in FILES[parser.prog].items():
        yield from entry(path, what)
    yield ".SH SEE ALSO"
    yield quoted(SEE_ALSO[parser.prog])


def page_of_the_format(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the page of vm.toml."""
    yield from head("vm.toml", 5)
    yield ".SH DESCRIPTION"
    yield plain(VM_TOML)
    yield ".SH KEYS"
    tables = list(tables_of("", schema))
    yield from keys_of(schema)
    for at, table in tables:
        yield f".SH {quoted(at)}"
        if "description" in table:
            yield plain(table["description"])
        yield from keys_of(table)
    yield ".SH EXAMPLE"
    yield from verbatim((HERE.parent / "examples/quickstart.toml").read_text())
    yield ".SH SEE ALSO"
    yield quoted(SEE_ALSO["vm.toml"])


def tables_of(at: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each table below ``schema`` as its heading, ``[cpu]`` or ``[[disk]]``."""
    for key, value in schema.get("properties", {}).items():
        path = f"{at}.{key}" if at else key
        if value.get("type") == "object":
            yield f"[{path}]", value
            yield from tables_of(path, value)
        elif value.get("items", {}).get("type") == "object":
            yield f"[[{path}]]", {"description": value.get("description", ""), **value["items"]}
            yield from tables_of(path, value["items"])


def keys_of(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a table that are no tables themselves."""
    for key, value in table.get("properties", {}).items():
        if value.get("type") != "object" and value.get("items", {}).get("type") != "object":
            is_needed = key in table.get("required", ())
            what = value.get("description", "") + (" It must be there." if is_needed else "")
            yield from entry(rf"{key} = {form(value)}", what)


def form(value: Mapping[str, Any]) -> str:
    """Return the form of a key's value, which stands after the key."""
    if "enum" in value:
        return " | ".join(_spelled(value) for value in value["enum"])
    if "anyOf" in value or "oneOf" in value:
        return " | ".join(form(choice) for choice in value.get("anyOf") or value["oneOf"])
    if value.get("type") == "array":
        return f"[{form(value.get('items', {}))}, ...]"
    if value.get("type") == "integer" and "maximum" in value:
        return f"{value.get('minimum', 0)}...{value['maximum']}"
    names = {"string": '"..."', "boolean": "true | false", "integer": "number"}
    return names.get(str(value.get("type")), "value")


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def head(name: str, section: int) -> Iterator[str]:
    """Yield the title and the name."""
    yield f'.TH {name.upper()} {section} "" kvmhooks "kvmhooks manual"'
    yield ".SH NAME"
    yield rf"{quoted(name)} \- {quoted(DOES[name])}"


def entries(actions: Sequence[argparse.Action]) -> Iterator[str]:
    """Yield the purpose of each option or argument."""
    for action in actions:
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        names = ", ".join(action.option_strings)
        words = [names, str(value) if action.nargs != 0 else ""]
        yield from entry(" ".join(filter(None, words)) or action.dest, action.help or "")


def entry(name: str, what: str) -> Iterator[str]:
    """Yield a tagged paragraph."""
    yield ".TP"
    yield rf"\fB{quoted(name)}\fR"
    yield plain(what)


def verbatim(text: str | None) -> Iterator[str]:
    """Yield lines as they stand."""
    if text:
        yield from [".PP", ".nf", *map(plain_line, text.rstrip("\n").splitlines()), ".fi"]


def plain(text: str) -> str:
    """Return running text."""
    return "\n".join(plain_line(line.strip()) for line in text.splitlines() if line.strip())


def plain_line(line: str) -> str:
    """Return a line that is no request of roff's."""
    return rf"\&{quoted(line)}" if line[:1] in {".", "'"} else quoted(line)


def quoted(text: str) -> str:
    """Return a text without anything that roff reads as its own; a hyphen that can be copied."""
    return text.replace("\\", r"\e").replace("-", r"\-").replace("%%", "%").replace("…", "...")


if __name__ == "__main__":
    sys.exit(main())
