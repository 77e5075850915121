"""The words of the code: docstrings that are parsed at once, names that say what a thing is."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("benchmarks", "build_backend", "docs", "examples", "hooks")
FOLDERS = (*TOOLS, "kvmhooks", "launcher", "tests")

CLAUSES = frozenset(
    {"What", "Where", "Whether", "How", "As", "Why", "Who", "Whom", "Whose", "Which"}
    | {"Whatever", "Wherever", "However", "Whoever", "Whichever"}
)
"""First words of a docstring that is a clause without its sentence."""

SUBJECT = re.compile(
    r"(?:^|[.!?»)*]\s+|[:;]\s+|\n\n|\n- |\n\d+\. |\| )"
    r"((?:What|Whatever|Which|Whichever|Who|Whoever|Whom|Whose|Whether|Why|How)\b[^.?|]*[.?])",
    re.MULTILINE,
)
"""A sentence that begins with a clause for its subject; a question is none. «That» and «Where»,
which begin other sentences as well, are left to a reader, as is a clause within a sentence."""

PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "docs/*.md", "docs/man/*")

CODE = re.compile(r"```.*?```", re.DOTALL)

SENTENCE_LENGTH = 25
"""The length from which a text of the code is more than a word: it may be a message."""

NOUNS = frozenset(["The", "A", "An", "Its", "Each", "Every", "All", "One", "Those"])
"""First words of a function's docstring that leave open what the function does."""

NAMES = frozenset({"one", "said"})
"""Names of variables that may be anything."""

TWICE = {
    "kvmhooks/isolate": frozenset({"sriov.py"}),
    "kvmhooks/libvirt": frozenset({"cpu.py", "devices.py", "machine.py", "memory.py", "tuning.py"}),
}
"""Basenames that a room has twice: libvirt's wings write, read and tune the same parts of XML, and
two are names for older supervisors, beside the wings."""

CLASSES = {
    "Channel": "of the guest ([[channel]]), and of kvm-launch's output",
    "Console": "a table of vm.toml, and the console that runs",
    "Cpu": "a table of vm.toml, and a CPU of the host",
    "Element": "the hook's own reader of XML has the standard library only",
    "Helper": "a table of vm.toml, and the program that runs",
    "Image": "a table of vm.toml, and one of a device's ROM",
    "Iommu": "a table of vm.toml, and the host's",
    "Isolation": "a table of vm.toml, and the kernel's command line",
    "Memory": "a table of vm.toml, and the host's",
    "Sriov": "a table of vm.toml, and a card of the host",
}
"""Classes of one name, with the reason."""

BEFORE = {
    "Account": "StatusReporter",
    "Crew": "HelperProcesses",
    "Cut": "SearchLimit",
    "Door": "System",
    "Gate": "Feature",
    "Ground": "Capacity",
    "Hold": "Lease",
    "Keeper": "Registry",
    "Ledger": "Transactions",
    "Member": "HelperProcess",
    "Near": "NodeAffinity",
    "Seat": "Reservation",
    "Seating": "Assignment",
    "Seats": "NodeCosts",
    "Site": "NodeCapacity",
    "WishKnob": "PolicyKnob",
    "Wishes": "FeatureUse",
    "account": "reporter",
    "crew": "helper_processes",
    "crew_of": "started_helpers",
    "door": "system",
    "gate": "feature, start_pipe or fastpath",
    "is_twin": "is_second_instance",
    "keeper": "registry",
    "keeper_of": "registry_of",
    "late": "late_groups",
    "ledger": "transactions",
    "mourn": "first_exit",
    "owe": "mark_pending",
    "seat": "reservation or assign",
    "seating": "assignment",
    "seats": "node_costs",
    "set_out": "release",
    "settle": "release_pending",
    "site": "node",
    "twin_of": "second_identity_of",
    "wish": "requested",
    "wishes": "power, memory, kernel, block; features",
}
"""Words of this house alone that named things before, and the words for those now."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Source:
    """A file: the lines of each kind of offence in it, and all names that it gives, with theirs."""

    clauses: list[int]
    nouns: list[int]
    names: list[int]
    classes: list[tuple[str, int]]
    given: list[tuple[str, int]]


@cache
def sources() -> dict[str, Source]:
    """Return each file of the project by its path."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    paths = {str(file.relative_to(ROOT)): file for file in files}
    return {path: source_of(path, ast.parse(file.read_bytes())) for path, file in paths.items()}


def source_of(path: str, tree: ast.Module) -> Source:
    """Return the offences in a file; a test's docstring is a sentence, and begins as one."""
    nodes = list(ast.walk(tree))
    documented = [(node, first_word(text), line) for node, text, line in docstrings(nodes)]
    functions = [] if path.startswith("tests/") else [*filter(is_function, documented)]
    return Source(
        clauses=[line for _, word, line in documented if word in CLAUSES],
        nouns=[line for _, word, line in functions if word in NOUNS],
        names=[getattr(node, "lineno", 0) for node in nodes if name_of(node) in NAMES],
        classes=[
            (node.name, node.lineno)
            for node in nodes
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ],
        given=[
            (name, getattr(node, "lineno", 0))
            for node in nodes
            if (name := definition_of(node) or name_of(node)) is not None
        ],
    )


def docstrings(nodes: list[ast.AST]) -> Iterator[tuple[ast.AST, str, int]]:
    """Yield each docstring with what has it and its line, those of attributes too."""
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body:
            if (text := text_of(node.body[0])) is not None:
                yield node, text, node.body[0].lineno
            for before, after in itertools.pairwise(node.body):
                text = text_of(after) if isinstance(before, (ast.Assign, ast.AnnAssign)) else None
                if text is not None:
                    yield before, text, after.lineno


def text_of(statement: ast.stmt) -> str | None:
    """Return the text of a statement that is nothing but one."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def first_word(text: str) -> str:
    """Return the first word of a docstring, without its marks."""
    words = text.split()
    return words[0].strip('*`«(",:;.') if words else ""


def is_function(documented: tuple[ast.AST, str, int]) -> bool:
    """Return whether a docstring is that of a function that is not read as an attribute."""
    node = documented[0]
    if not isinstance(node, FUNCTIONS):
        return False
    decorators = {ast.unparse(each).partition("(")[0] for each in node.decorator_list}
    return decorators.isdisjoint({"property", "cached_property"})


def name_of(node: ast.AST) -> str | None:
    """Return the name that a node gives to a value."""
    if isinstance(node, ast.Name):
        return node.id if isinstance(node.ctx, ast.Store) else None
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.alias):
        return node.asname
    return node.name if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) else None


def definition_of(node: ast.AST) -> str | None:
    """Return the name of a class or a function that a node defines."""
    return node.name if isinstance(node, (ast.ClassDef, *FUNCTIONS)) else None


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("clauses", "a docstring begins with its noun or its verb, not with a clause"),
        ("nouns", "a function's docstring begins with its verb: Return, Yield, Write …"),
        ("names", f"no variable is called {' or '.join(sorted(NAMES))}: say what it is"),
    ],
)
def test_the_prose_is_by_the_rule(kind: str, rule: str) -> None:
    """Each docstring is parsed at once, and each name tells what the thing is."""
    wrong = [
        f"{path}:{line}" for path, source in sources().items() for line in getattr(source, kind)
    ]
    assert not wrong, f"{rule}: {' '.join(wrong)}"


def clauses_in(text: str) -> list[tuple[int, str]]:
    """Return the lines of a text, from 0, at which a sentence has a clause for its subject."""
    text = CODE.sub(lambda code: "\n" * code[0].count("\n"), text)
    found = SUBJECT.finditer(text)
    return [
        (text.count("\n", 0, match.start(1)), " ".join(match[1].split())[:60])
        for match in found
        if not match[1].endswith("?")
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("It is so. What it has is ours.", [0]),
        ("A list:\n\n- Whoever comes\n  next goes on.\n- Who is it?\n", [2]),
        ("| a | b |\n| c | Whether it is there. |\n", [1]),
        ("```\nIt is. What is it is.\n```\nNobody knows what it is. That is so.", []),
    ],
    ids=["sentence", "list", "table", "none"],
)
def test_a_clause_for_a_subject_is_found(text: str, lines: list[int]) -> None:
    """In sentences, lists and tables, and neither in code nor in questions."""
    assert [line for line, _ in clauses_in(text)] == lines


def test_no_sentence_of_a_page_has_a_clause_for_its_subject() -> None:
    """A page is read once, from its first word on."""
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    assert len(pages) > len(PAGES)
    wrong = [
        f"{page.relative_to(ROOT)}:{line + 1}: {words}"
        for page in pages
        for line, words in clauses_in(page.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_no_sentence_of_the_code_has_a_clause_for_its_subject() -> None:
    """Docstrings and messages are held to the same: nobody reads a message twice, either."""
    wrong = [
        f"{path}:{node.lineno + line}: {words}"
        for path in product()
        for node in ast.walk(ast.parse((ROOT / path).read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if len(node.value) > SENTENCE_LENGTH
        for line, words in clauses_in(node.value)
    ]
    assert not wrong, "\n".join(wrong)


def product() -> list[str]:
    """Return the paths of what is installed: no tests, tools or examples."""
    return [path for path in sources() if path.startswith(("kvmhooks/", "launcher/"))]


def room_of(path: str) -> str:
    """Return the room of a module: a package in ``kvmhooks``, or all of ``kvm_launch``."""
    return "/".join(path.split("/")[:2])


def test_a_basename_is_there_once_in_a_room() -> None:
    """A file is found by its name alone."""
    modules = [path for path in product() if not path.endswith(("__init__.py", "__main__.py"))]
    counts = Counter((room_of(path), path.rpartition("/")[2]) for path in modules)
    twice = sorted(place for place, count in counts.items() if count > 1)
    new = [f"{room}: {name}" for room, name in twice if name not in TWICE.get(room, frozenset())]
    assert not new, f"a room has two files of a name: {'; '.join(new)}"


def test_a_class_has_a_name_of_its_own() -> None:
    """A class is found by its name alone; what is private to a module is not counted."""
    places: dict[str, list[str]] = {}
    for path in product():
        for name, line in sources()[path].classes:
            places.setdefault(name, []).append(f"{path}:{line}")
    twice = {name: found for name, found in places.items() if len(found) > 1}
    new = {name: found for name, found in twice.items() if name not in CLASSES}
    assert not new, f"a class's name is one thing in the project: {new}"


STAND_INS = {f"kvmhooks/isolate/{name}.py" for name in ("mediated", "sriov", "vf_settings")}
"""Names for supervisors of a92f6b5, which know no others."""


def test_a_name_of_before_does_not_come_back() -> None:
    """A class, function, variable or module has the field's word, not one that was replaced."""
    back = [
        f"{path}:{line}: {name}, expected {BEFORE[name]}"
        for path in product()
        for name, line in [(Path(path).stem, 1), *sources()[path].given]
        if name in BEFORE and path not in STAND_INS
    ]
    assert not back, "\n".join(back)
