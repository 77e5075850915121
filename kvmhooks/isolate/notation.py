"""JSON without ``json``, which loads ``re`` and with it takes as long as the interpreter's start.

With ``json`` in its place `prepare` and `start` of a large host take 3.04 to 3.18 times a bare loop
over the same files, where 3 is the limit; with this 2.48 to 2.55 (three runs of each in turns,
``benchmarks/hook_cost.py``).

What is written is JSON that anyone reads; what is read is JSON that was written here: no blanks
between the tokens, whole numbers only. Long lists of texts, which most of a state is, are taken
apart at once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_WORDS: Final = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}


def to_text(value: Any) -> str:
    """The JSON text of texts, whole numbers, truth values, None, and lists and dicts of them."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        members = (f"{_quoted(key)}:{to_text(one)}" for key, one in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        if value and all(type(one) is str for one in value) and _is_plain(" ".join(value)):
            return '["' + '","'.join(value) + '"]'
        return f"[{','.join(map(to_text, value))}]"
    for word, said in _WORDS.values():
        if value is said:
            return word
    return str(int(value))


def from_text(text: str) -> Any:
    """The value of a JSON text. Raises ``ValueError`` for one that is not written as above."""
    try:
        value, end = _value(text, 0)
    except (IndexError, RecursionError) as error:
        raise ValueError("it ends too early") from error
    if text[end:].strip():
        raise ValueError(f"found {text[end : end + 20]!r} after its end")
    return value


def _is_plain(text: str) -> bool:
    """Whether a text stands for itself between quotes."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _quoted(text: str) -> str:
    if _is_plain(text):
        return f'"{text}"'
    return '"' + "".join(one if _is_plain(one) else _escaped(one) for one in text) + '"'


def _escaped(character: str) -> str:
    """Its number in hex after a backslash and ``u``; two of them for what UTF-16 has as a pair."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that starts at a place, and where it ends."""
    first = text[at]
    if first == '"':
        return _string(text, at)
    if first == "{":
        return _members(text, at)
    if first == "[":
        return _items(text, at)
    if first in _WORDS:
        word, said = _WORDS[first]
        if text.startswith(word, at):
            return said, at + len(word)
        raise _unexpected(text, at)
    end = at + 1
    while text[end : end + 1].isdecimal():
        end += 1
    return int(text[at:end]), end


def _string(text: str, at: int) -> tuple[str, int]:
    end = text.index('"', at + 1)
    said = text[at + 1 : end]
    if "\\" not in said:
        return said, end + 1
    parts: list[str] = []
    at += 1
    while text[at] != '"':
        if text[at] != "\\":
            parts.append(text[at])
            at += 1
        elif text[at + 1] == "u" and len(text) >= at + 6:
            parts.append(chr(int(text[at + 2 : at + 6], 16)))
            at += 6
        else:
            raise _unexpected(text, at)
    units = "".join(parts).encode("utf-16-be", "surrogatepass")
    return units.decode("utf-16-be", "surrogatepass"), at + 1


def _items(text: str, at: int) -> tuple[list[Any], int]:
    if text[at + 1] == '"':
        end = text.find('"]', at + 2)
        said = text[at + 2 : end] if end > 0 else "\\"
        texts = said.split('","')
        if "\\" not in said and said.count('"') == 2 * (len(texts) - 1):
            return texts, end + 2
    found: list[Any] = []
    at += 1
    while text[at] != "]":
        one, at = _value(text, at)
        found.append(one)
        at = _next(text, at, "]")
    return found, at + 1


def _members(text: str, at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at += 1
    while text[at] != "}":
        if text[at] != '"':
            raise _unexpected(text, at)
        key, at = _string(text, at)
        if text[at] != ":":
            raise _unexpected(text, at)
        found[key], at = _value(text, at + 1)
        at = _next(text, at, "}")
    return found, at + 1


def _next(text: str, at: int, end: str) -> int:
    """Where the next one starts, or the end stands."""
    if text[at] == "," and text[at + 1] != end:
        return at + 1
    if text[at] != end:
        raise _unexpected(text, at)
    return at


def _unexpected(text: str, at: int) -> ValueError:
    return ValueError(f"found {text[at : at + 20]!r} at {at}, expected JSON as kvmhooks writes it")
