"""JSON without ``json``, which loads ``re`` and with it takes as long as the interpreter's start.

With ``json`` in its place `prepare` and `start` of a large host take 3.04 to 3.18 times a bare loop
over the same files, where 3 is the limit; with this 2.48 to 2.55 (three runs of each in turns,
``benchmarks/hook_cost.py``).

The text written is JSON that anyone reads; the text read is JSON that was written here: no blanks
between the tokens, whole numbers only. Long lists of texts, most of a state, are taken apart at
once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_WORDS: Final = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}


def to_text(value: Any) -> str:
    """Return the JSON of texts, whole numbers, truth values, None, and lists and dicts of them."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        members = (f"{_quoted(key)}:{to_text(member)}" for key, member in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        if value and all(type(member) is str for member in value) and _is_plain(" ".join(value)):
            return '["' + '","'.join(value) + '"]'
        return f"[{','.join(map(to_text, value))}]"
    for word, meaning in _WORDS.values():
        if value is meaning:
            return word
    return str(int(value))


def from_text(text: str) -> Any:
    """Return the value of a JSON text. Raises ``ValueError`` for one not written as above."""
    try:
        value, end = _value(text, 0)
    except (IndexError, RecursionError) as error:
        raise ValueError("it ends too early") from error
    if text[end:].strip():
        raise ValueError(f"found {text[end : end + 20]!r} after its end")
    return value


def _is_plain(text: str) -> bool:
    """Return whether a text stands for itself between quotes."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _quoted(text: str) -> str:
    if _is_plain(text):
        return f'"{text}"'
    return '"' + "".join(char if _is_plain(char) else _escaped(char) for char in text) + '"'


def _escaped(character: str) -> str:
    """Return its number in hex after a backslash and ``u``; two for what UTF-16 has as a pair."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return the value that starts at a place, and where it ends."""
    first = text[at]
    if first == '"':
        return _string(text, at)
    if first == "{":
        return _members(text, at)
    if first == "[":
        return _items(text, at)
    if first in _WORDS:
        word, meaning = _WORDS[first]
        if text.startswith(word, at):
            return meaning, at + len(word)
        raise _unexpected(text, at)
    end = at + 1
    while text[end : end + 1].isdecimal():
        end += 1
    return int(text[at:end]), end


def _string(text: str, at: int) -> tuple[str, int]:
    end = text.index('"', at + 1)
    found = text[at + 1 : end]
    if "\\" not in found:
        return found, end + 1
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
        items = text[at + 2 : end] if end > 0 else "\\"
        texts = items.split('","')
        if "\\" not in items and items.count('"') == 2 * (len(texts) - 1):
            return texts, end + 2
    found: list[Any] = []
    at += 1
    while text[at] != "]":
        item, at = _value(text, at)
        found.append(item)
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
    """Return the place where the next one starts, or the end stands."""
    if text[at] == "," and text[at + 1] != end:
        return at + 1
    if text[at] != end:
        raise _unexpected(text, at)
    return at


def _unexpected(text: str, at: int) -> ValueError:
    return ValueError(f"found {text[at : at + 20]!r} at {at}, expected JSON as kvmhooks writes it")
