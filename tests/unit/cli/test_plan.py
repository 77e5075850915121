"""``kvmhooks plan``: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.host import read
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import of_claim
from kvmhooks.placement import claim, plan, plan_all, to_json
from kvmhooks.show.plan_map import placed_drawing, placed_text
from kvmhooks.show.plan_text import picture
from kvmhooks.show.printed import printed
from kvmhooks.spec import VmSpec, load_vm
from kvmhooks.survey.sources import Sources
from kvmhooks.survey.survey import take
from tests.fakehost import write_host

VM = """\
name = "{name}"
[cpu]
vcpus = {vcpus}
placement = "dedicated"
[memory]
size = "256MiB"
[isolation]
exclusive = true
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A host of 8 CPUs, and a small and a large VM that fit it together, and one that does not."""
    write_host(tmp_path / "host", cores=8, nodes=2, l3_cores=2)
    for name, vcpus in (("small", 2), ("large", 4), ("huge", 6)):
        (tmp_path / f"{name}.toml").write_text(VM.format(name=name, vcpus=vcpus))
    return tmp_path


def run(files: Path, *words: str) -> int:
    """The verb for the host of the fixture; words that end in ``.toml`` are its files."""
    named = [
        str(files / word) if word.endswith((".toml", ".json", ".svg")) else word for word in words
    ]
    return main(["plan", "--host", str(files / "host"), *named])


def taken(files: Path) -> Inventory:
    """The inventory on which the verb plans there."""
    return take(Sources(host=str(files / "host")), *specs(files, "small"))


def specs(files: Path, *names: str) -> list[VmSpec]:
    return [load_vm(files / f"{name}.toml") for name in names]


def test_a_plan_is_a_table_and_the_host(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The renderers speak one after the other."""
    assert run(files, "small.toml") == 0
    host = read(files / "host")
    decided = plan(specs(files, "small")[0], taken(files))
    expected = f"{picture(decided)}\n{placed_text(host, [decided])}"
    assert capsys.readouterr() == (expected, "")


def test_several_vms_are_shown_together(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one picture, and the order in which they were planned is said."""
    assert run(files, "small.toml", "large.toml") == 0
    host = read(files / "host")
    together = plan_all(specs(files, "small", "large"), host)
    output = capsys.readouterr().out
    assert output.endswith(placed_text(host, together.plans))
    assert f"planned in this order: {', '.join(plan.name for plan in together.plans)}\n" in output


def test_json_of_one_is_the_plan(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of one is that of ``to_json``; of several it is all that is known."""
    assert run(files, "--json", "small.toml") == 0
    alone = plan(specs(files, "small")[0], taken(files))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(to_json(alone)))
    assert run(files, "--json", "small.toml", "huge.toml") == 1
    document = json.loads(capsys.readouterr().out)
    assert [plan["name"] for plan in document["plans"]] == ["small"]
    assert list(document["refused"]) == ["huge"]
    assert document["is_proven"] is True


def test_what_does_not_fit_is_refused_with_its_reason(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are shown all the same; the code is that of a refusal."""
    assert run(files, "small.toml", "large.toml", "huge.toml") == 1
    output, refused = capsys.readouterr()
    assert "a is " in output
    assert refused.count("\n") == 1
    assert refused.startswith("huge: cpu.vcpus: found 6")


def test_claims_are_read_from_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim as ``kvmhooks claim`` prints it, a holding, or a list of both."""
    host = read(files / "host")
    (large,) = specs(files, "large")
    decided = plan(large, host)
    held, shown = claim(decided), json.loads(printed(decided, "claim"))
    for document in (held.to_json(), shown, [of_claim(held).to_json()]):
        (files / "claims.json").write_text(json.dumps(document))
        assert run(files, "small.toml", "--claims", "claims.json") == 0
        beside = plan(specs(files, "small")[0], taken(files), [held])
        out = capsys.readouterr().out
        assert out == f"{picture(beside)}\n{placed_text(host, [beside], [of_claim(held)])}"
        assert ":# " in out


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "found no JSON"), ("[3]", "claims: found int"), ('{"format": 7}', "format 7")],
)
def test_claims_that_are_none_are_refused(
    files: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    """With the file and what stands there."""
    (files / "claims.json").write_text(text)
    assert run(files, "small.toml", "--claims", "claims.json") == 1
    out, refused = capsys.readouterr()
    assert (out, refused.count("\n")) == ("", 1)
    assert message in refused
    assert "claims" in refused


def test_the_drawing_goes_to_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or out; the table is not printed beside it."""
    host = read(files / "host")
    drawn = placed_drawing(host, [plan(specs(files, "small")[0], host)])
    assert run(files, "small.toml", "--svg", "plan.svg") == 0
    assert (files / "plan.svg").read_text() == drawn
    assert run(files, "small.toml", "--svg", "-") == 0
    assert capsys.readouterr() == (drawn, "")


def test_the_drawing_is_written_through_no_link(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its owner could have root write anywhere."""
    (files / "link.svg").symlink_to(files / "made.svg")
    assert run(files, "small.toml", "--svg", "link.svg") == 1
    assert capsys.readouterr().err.endswith(
        "link.svg: cannot be written: found a link, expected a file or nothing\n"
    )
    assert not (files / "made.svg").exists()


def test_one_name_is_one_vm(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is given twice is a slip, and is refused."""
    assert run(files, "small.toml", "small.toml") == 1
    assert capsys.readouterr().err == "name: found 'small' in 2 files, expected one\n"
