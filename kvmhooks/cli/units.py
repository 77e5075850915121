"""``kvmhooks install-units``: systemd's units for VMs of kvm-launch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvmhooks.cli.beside import check
from kvmhooks.cli.roots import used


def main(verb: str, argv: Sequence[str]) -> int:
    """Write or remove them, and have systemd read its units again."""
    from kvmhooks import units
    from kvmhooks.isolate.hook.installation import check_steps

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    directory = units.user_directory() if arguments.user else arguments.root / units.SYSTEM
    programs = arguments.programs or Path(sys.argv[0]).parent
    with used(arguments.root):
        if not arguments.user and not arguments.packaged:
            check_steps(arguments.root, [directory / units.NAME])
        if arguments.remove:
            done = units.InstalledUnits(units.remove(directory), [])
        elif arguments.packaged:
            done = units.InstalledUnits(units.package(arguments.root, programs), [])
        else:
            theirs = arguments.root / units.PACKAGED[arguments.user]
            done = units.install(
                directory, programs.absolute(), is_user=arguments.user, packaged=theirs
            )
    if arguments.json:
        kind = "removed" if arguments.remove else "installed"
        print(
            json.dumps({kind: list(map(str, done.made)), "packaged": list(map(str, done.packaged))})
        )
    else:
        print("".join(f"{path}\n" for path in done.made), end="")
        print("".join(f"{path}: it is a package's, and serves\n" for path in done.packaged), end="")
    if arguments.packaged:
        return 0
    if arguments.root == Path("/") and (done.made or done.packaged):
        _reload(is_user=arguments.user)
    if not arguments.remove and not arguments.json:
        where = "~/.config" if arguments.user else "/etc"
        scope = "systemctl --user" if arguments.user else "systemctl"
        print(f"{where}/kvm-launch/NAME.toml is a VM: `{scope} start kvm-launch@NAME`")
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("--user", action="store_true", help="for this user's own VMs")
    parser.add_argument("--remove", action="store_true", help="take them away again")
    parser.add_argument("--packaged", action="store_true",
                        help="for who makes a package: below usr/lib of --root, for --programs "
                        "that need not be there yet")  # fmt: skip
    parser.add_argument("--programs", metavar="DIR", type=Path, help="the directory of kvm-launch")
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"),
                        help="a host's root directory")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _reload(*, is_user: bool) -> None:
    """Have systemd read its units; where it does not run (sd_booted(3)) there is nobody to tell."""
    if not Path("/run/systemd/system").exists():
        return
    scope = ["--user"] if is_user else []
    command = ["/usr/bin/systemctl", *scope, "daemon-reload"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return
    if done.returncode != 0:
        print(f"{' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
