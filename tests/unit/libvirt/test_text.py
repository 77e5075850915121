"""The text of a document with the place of everything in it."""

from __future__ import annotations

import pytest

from kvmhooks.errors import InputError
from kvmhooks.libvirt.edit import text
from kvmhooks.libvirt.edit.text import parse

DOCUMENT = """\ufeff<?xml version='1.0' encoding='utf-8'?>
<!-- ü -->
<domain xmlns:q = "urn:q">
\t<a  x = "1>2"\ty='&lt;ü'/><q:b>t&amp;<!-- no --></q:b ><a>x<![CDATA[<>]]></a>
</domain>
"""


def test_every_element_has_its_place() -> None:
    """Tags, values and texts are those of the source, entities resolved, quotes kept."""
    read = parse(DOCUMENT.encode())
    text = read.data.decode()

    def between(start: int, end: int) -> str:
        return read.data[start:end].decode()

    assert [
        (
            element.path,
            element.tag,
            element.text.strip(),
            between(element.start, element.head_end),
            element.is_closed,
        )
        for element in read.root.walk()
    ] == [
        ("domain", "domain", "", '<domain xmlns:q = "urn:q">', False),
        ("a[1]", "a", "", "<a  x = \"1>2\"\ty='&lt;ü'/>", True),
        ("q:b", "{urn:q}b", "t&", "<q:b>", False),
        ("a[2]", "a", "x<>", "<a>", False),
    ]
    first = next(read.root.all("a"))
    assert {
        name: (attribute.value, between(attribute.start, attribute.end), attribute.quote)
        for name, attribute in first.attributes.items()
    } == {"x": ("1>2", "1>2", '"'), "y": ("<ü", "&lt;ü", "'")}
    assert "\ufeff" + text == DOCUMENT
    assert read.encode(read.data) == DOCUMENT.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "us-ascii"])
def test_text_goes_back_into_its_encoding(encoding: str) -> None:
    """A document comes out as it went in, whatever its encoding; ASCII takes what is added too."""
    text = f'<?xml version="1.0" encoding="{encoding}"?>\r\n<domain name="a"/>\r\n'
    raw = text.encode(encoding)
    read = parse(raw)
    assert (read.newline, read.encode(read.data)) == ("\r\n", raw)
    added = "ü".encode(encoding.replace("utf-16", "utf-16-le"), "xmlcharrefreplace")
    assert read.encode("ü".encode()).endswith(added)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "no element found"),
        (b"<domain>", "no element found"),
        (b"<domain></x>", "mismatched tag"),
        (b"<domain a='1' a='2'/>", "duplicate attribute"),
        (b"<domain/><domain/>", "junk after document element"),
        (b"<!DOCTYPE d [<!ENTITY a 'b'>]><d>&a;</d>", "found a document type 'd', expected none"),
        (b"<d>&a;</d>", "undefined entity"),
        (b"<q:d/>", "line 1: the prefix 'q' is not bound"),
        (b"<d xmlns:q='" + b"u" * 1025 + b"'/>", "line 1: found a namespace of more than 1024"),
        (b"<?xml version='1.0' encoding='rot13'?><d/>", "found the encoding 'rot13', expected one"),
        (b"<?xml version='1.0' encoding='us-ascii'?><d>\xff</d>", "bytes that are not us-ascii"),
        (b"<d>" * 101 + b"</d>" * 101, "101 deep"),
        (b"<d>" + b"<a/>" * text.MAX_ELEMENTS + b"</d>", "more than 100000 elements"),
        (b" " * (text.MAX_BYTES + 1), "expected at most 4194304"),
    ],
)
def test_what_is_no_document_is_refused(document: bytes, message: str) -> None:
    """Each with one message that starts with the document's name."""
    with pytest.raises(InputError) as caught:
        parse(document, "vm.xml")
    assert str(caught.value).startswith("vm.xml: ")
    assert message.replace("101 deep", "100 deep") in str(caught.value)
