r"""Text from elsewhere, made safe to show.

A client's, an agent's or another server's bytes may move the cursor, retitle the window, set the clipboard,
begin a line that looks like ours, or show a file name backwards (CVE-2021-42574, "Trojan Source"). Whatever a
terminal shows passes `visible` first, which writes such characters as Python writes them: `\x1b`, `\u202e`.
What programs read, JSON, keeps its value: there the same characters are escaped by JSON's own rule.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

_INVISIBLE = (
    r"\x7f-\x9f"  # DEL and C1: on many terminals U+009B begins a command, as ESC [ does
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    r"\u2028\u2029"  # end a line, for some programs
    r"\ud800-\udfff"  # half a character: no encoding takes it
    r"\U000e0000-\U000e007f"  # invisible copies of ASCII
)
_IN_A_LINE = re.compile(rf"[\x00-\x1f{_INVISIBLE}]")
_IN_LINES = re.compile(rf"[\x00-\x08\x0b-\x1f{_INVISIBLE}]")
_IN_OUTPUT = re.compile(rf"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f{_INVISIBLE}]")
_IN_JSON = re.compile(f"[{_INVISIBLE}]")

_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))"
)  # a colour, a title, a link
_COLOUR_BEGUN = re.compile(r"\x1b(\[[0-9;]*)?$")
_COLOUR_LIMIT = 32  #: a longer one is no colour


def visible(text: str, *, lines: bool = False) -> str:
    """`text` as one line in which nothing moves the cursor; with `lines`, newlines and tabs stay."""
    if text.isprintable():
        return text
    if lines:
        return _IN_LINES.sub(_escaped, text.replace("\r\n", "\n"))
    return _IN_A_LINE.sub(_escaped, text)


def without_sequences(text: str) -> str:
    """What a terminal shows of `text`: without colours, and whatever else an escape begins."""
    return _SEQUENCE.sub("", text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON of plain data: readable in any language, and nothing in it moves the cursor."""
    separators = None if indent is not None else (",", ":")
    text = json.dumps(value, indent=indent, ensure_ascii=False, separators=separators)
    return _IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)


def toml_text(value: str | float | bool) -> str:
    """A TOML value; its basic strings are JSON's, but for characters that JSON would write as two halves."""
    return _IN_JSON.sub(lambda found: f"\\U{ord(found[0]):08X}", json.dumps(value, ensure_ascii=False))


class ProgramOutput:
    """What a program wrote, piece by piece, for a terminal: its colours stay, nothing else that acts."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._rest = ""

    def feed(self, piece: bytes) -> str:
        """The text of what is complete: a character, or a colour, that was cut in two waits for its rest."""
        text = self._rest + self._decoder.decode(piece)
        begun = _COLOUR_BEGUN.search(text[-_COLOUR_LIMIT:])
        end = len(text) - len(begun[0]) if begun else len(text)
        text, self._rest = text[:end], text[end:]
        return _IN_OUTPUT.sub(_escaped, text.replace("\r\n", "\n"))

    def end(self) -> str:
        """What was begun and never completed."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return _IN_OUTPUT.sub(_escaped, rest)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
