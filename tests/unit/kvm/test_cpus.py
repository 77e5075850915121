"""QEMU's answers under KVM: as a start has asked them, and as they are kept for this boot."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from kvmhooks.errors import LaunchError
from kvmhooks.kvm.cpus import MEMORY, ask_under_kvm, recall, remember
from kvmhooks.machine.target import CpuAnswers
from kvmhooks.qemu.emulator import PLACES
from kvmhooks.qemu.run_dir import private_directory

MODELS = [{"name": "EPYC", "unavailable-features": ["sha-ni"]}, {"name": "host"}]
BASE = {"model": {"name": "base", "props": {"sha-ni": False, "avx2": False}}}
ALL = {"model": {"name": "max", "props": {"sha-ni": False, "avx2": True}}}
SEV = {"pdh": "", "cert-chain": "", "cpu0-id": "", "cbitpos": 51, "reduced-phys-bits": 1}
"""An answer in the form of ``SevCapability`` (qapi/misc-i386.json)."""
NO_SEV = {"error": {"class": "GenericError", "desc": "SEV is not enabled in KVM"}}
ANSWERS = CpuAnswers(lacking={"EPYC": ("sha-ni",)}, absent=frozenset({"sha-ni"}))

PROGRAM = f"""#!{sys.executable}
import json, sys
open("{{folder}}/words", "a").write(" ".join(sys.argv[1:]) + "\\n")
answers = {{answers}}
for line in sys.stdin:
    question = json.loads(line)
    if question["execute"] == "quit":
        break
    if question.get("id") in answers:
        print(json.dumps({{{{"id": question["id"], **answers[question["id"]]}}}}), flush=True)
"""


def emulator(folder: Path, sev: dict[str, Any]) -> Path:
    """A QEMU that gives these answers, and notes how it was called."""
    results: list[dict[str, Any]] = [{"return": each} for each in (MODELS, BASE, ALL)]
    answers = dict(enumerate([*results, sev, {"return": {"qemu": {}}}]))
    program = folder / "qemu"
    program.write_text(PROGRAM.format(folder=folder, answers=answers))
    program.chmod(0o755)
    return program


def test_what_it_answers_of_cpus_and_of_sev(tmp_path: Path) -> None:
    """The numbers of SEV, or its words where KVM has none; it runs nothing."""
    expected = CpuAnswers(
        lacking=ANSWERS.lacking, absent=ANSWERS.absent, cbitpos=51, reduced_phys_bits=1
    )
    assert ask_under_kvm(emulator(tmp_path, {"return": SEV})) == expected
    without = ask_under_kvm(emulator(tmp_path, NO_SEV))
    assert (without.cbitpos, without.without_sev) == (None, "SEV is not enabled in KVM")
    words = (tmp_path / "words").read_text().splitlines()[0].split()
    assert words[:1] == ["-S"]
    assert words[words.index("-machine") + 1] == "none,accel=kvm"


def test_a_qemu_that_does_not_answer_is_one_error(tmp_path: Path) -> None:
    """With its own words."""
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'failed to initialize kvm' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(LaunchError, match=r"qemu: failed to initialize kvm$"):
        ask_under_kvm(program)
    program.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(LaunchError, match="did not answer over QMP to query-cpu-definitions"):
        ask_under_kvm(program)


def test_they_are_kept_for_a_boot_a_qemu_and_its_modules(tmp_path: Path) -> None:
    """One of a module that was loaded anew with another parameter is asked again; so is half."""
    program, base = emulator(tmp_path, NO_SEV), tmp_path / "run"
    modules = {"kvm_amd.nested": "1", "kvm.halt_poll_ns": "200000"}
    directory = private_directory(base)
    try:
        assert recall(program, base, modules) is None
        remember(ANSWERS, program, directory, modules)
    finally:
        os.close(directory)
    assert recall(program, base, modules) == ANSWERS
    assert recall(program, base, modules | {"kvm.halt_poll_ns": "0"}) == ANSWERS
    assert recall(program, base, modules | {"kvm_amd.nested": "0"}) is None
    kept = (base / MEMORY).read_text()
    for text in (kept[:-20], "[]", "{}", json.dumps({**json.loads(kept), "lacking": 5})):
        (base / MEMORY).write_text(text)
        assert recall(program, base, modules) is None
    (base / MEMORY).write_text(kept)
    assert recall(program, base, modules) == ANSWERS
    os.utime(program, ns=(1, 1))
    assert recall(program, base, modules) is None


def test_the_qemu_of_this_machine_answers() -> None:
    """A real one, under a real KVM: it knows features, and tells of SEV or why not."""
    program = next((place for place in PLACES if os.access(place, os.X_OK)), None)
    if program is None or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("QEMU and KVM are not here")
    answers = ask_under_kvm(program)
    assert "486" not in answers.lacking
    assert "fpu" not in answers.absent
    assert (answers.cbitpos is None) == bool(answers.without_sev)
