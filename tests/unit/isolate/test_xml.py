"""A domain's XML as the hook reads it: what is ours in it, at the cost of any other text."""

from __future__ import annotations

import tracemalloc

import pytest

from kvmhooks.isolate.claims import xml
from kvmhooks.policy import NAMESPACE

OURS = f"domain/metadata/{{{NAMESPACE}}}vm"


@pytest.mark.parametrize(
    ("metadata", "is_ours"),
    [
        (f'<k:vm xmlns:k="{NAMESPACE}"/>', True),
        (f'<vm xmlns="{NAMESPACE}"/>', True),
        (f'<a/><kvmhooks:vm xmlns:a="b" xmlns:kvmhooks="{NAMESPACE}"></kvmhooks:vm>', True),
        ('<k:vm xmlns:k="urn:another"/>', False),
        ('<vm xmlns="urn:another"/>', False),
        ("<vm/>", False),
        ("<k:vm/>", False),
        (f'<a xmlns:k="{NAMESPACE}"/><k:vm/>', False),
        (f'<a xmlns:k="{NAMESPACE}"><k:vm/></a>', False),
        (f'<k:vm xmlns:k="{NAMESPACE} "/>', False),
        (f'<k:other xmlns:k="{NAMESPACE}"/>', False),
    ],
)
def test_an_element_is_ours_by_its_namespace(metadata: str, *, is_ours: bool) -> None:
    """Its prefix may be any, but only where that is declared; both readers say the same."""
    data = f"<domain><metadata>{metadata}</metadata></domain>".encode()
    found = xml.parse(data).find(OURS.removeprefix("domain/"))
    assert (xml.holds(data, OURS), found is not None) == (is_ours, is_ours)


def test_an_inner_declaration_counts_as_far_as_its_element() -> None:
    """A prefix means another thing inside, and the same again after it."""
    text = f'<k:a xmlns:k="{NAMESPACE}" b="1"><k:c xmlns:k="urn:x" xml:d="2"/><k:e/></k:a>'
    root = xml.parse(text.encode())
    assert (root.tag, root.attributes) == (f"{{{NAMESPACE}}}a", {"b": "1"})
    assert [(child.tag, child.attributes) for child in root] == [
        ("k:c", {"xml:d": "2"}),
        (f"{{{NAMESPACE}}}e", {}),
    ]


@pytest.mark.parametrize("reader", ["holds", "parse"])
def test_a_long_namespace_is_not_in_every_name(reader: str) -> None:
    """One of a million characters around twenty thousand elements: 20 GB as full names."""
    inside = "<x:a/>" * 20_000
    data = f'<domain><metadata><x:m xmlns:x="{"u" * 1_000_000}">{inside}</x:m></metadata></domain>'
    tracemalloc.start()
    try:
        if reader == "holds":
            assert not xml.holds(data.encode(), OURS)
        else:
            assert len(xml.parse(data.encode()).findall("metadata/x:m/x:a")) == 20_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20 << 20


def test_many_prefixes_cost_no_more_than_their_text() -> None:
    """Declared at once, with a declaration in each of many elements below: nothing is copied."""
    declared = "".join(f' xmlns:a{number}="{NAMESPACE}"' for number in range(20_000))
    inside = '<a7:b xmlns:c=""/>' * 20_000
    root = xml.parse(f"<domain{declared}>{inside}</domain>".encode())
    assert {child.tag for child in root} == {f"{{{NAMESPACE}}}b"}
