"""JSON text as it is taken from strangers and said to them: one parser, one encoder.

Whatever `parse` takes, `encode` can say, and it parses back equal. So what Python's own parser takes and
its encoder, or a UTF-8 socket, would stumble over later is refused at once: `1e999` (an infinity), `NaN`, a
number of thousands of digits, half of a surrogate pair, nesting without end. Of two members of one name the
last counts.

`encode` can say a little more than `parse` takes: an author may cut a string in the middle of a character,
and wraps what a client sent in objects of his own.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
"""Lists and objects inside each other, in what is taken."""
MAX_DEPTH_SAID = 256
"""In what is said: every parser known takes it. Python's own, deep in a program's calls, takes some 900."""


class NotJson(ValueError):
    """Its message says why."""


class TooDeep(NotJson):
    """Nested deeper than is taken, or can be said."""


def parse(text: str | bytes) -> Any:
    """Raises `NotJson`, `TooDeep`."""
    try:
        whole = isinstance(text, bytes)  # UTF-8 has no half of a character
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if deeper_than(MAX_DEPTH, text):
            raise TooDeep(f"not valid JSON here: it may be nested {MAX_DEPTH} deep at most")
        value = _decoder.decode(text)
    except (NotJson, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise error if isinstance(error, NotJson) else NotJson(f"not valid JSON: {error}") from None
    except ValueError:  # of `int`, with advice that is for programmers
        raise NotJson("not valid JSON: a number has too many digits") from None
    # One character is found ten times as fast as two.
    escapes = "\\" in text and "\\u" in text
    if not (whole or _is_whole(text)) or (escapes and not _is_whole(_encoder.encode(value))):
        raise NotJson("not valid JSON: a \\u escape names half of a character")
    return value


def encode(value: Any) -> str:
    """Raises `ValueError` or `TypeError` for what JSON cannot say, and what an author's value may raise."""
    try:
        text = _encoder.encode(value)
    except RecursionError:
        raise TooDeep("nested too deep, or in a circle") from None
    # A string, which most are, has nothing to count.
    if type(value) is not str and deeper_than(MAX_DEPTH_SAID, text):
        raise TooDeep(f"nested deeper than {MAX_DEPTH_SAID}")
    return text


def in_utf8(text: str) -> bytes:
    """JSON text for a socket or a file; half of a surrogate pair, which is in a string, as its escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()


def deeper_than(depth: int, text: str) -> bool:
    """Whether lists and objects are nested deeper in JSON text."""
    # Counting is cheap and settles nearly every text; strings may hold brackets too, so it only suspects.
    if text.count("{") + text.count("[") <= depth:
        return False
    level = 0
    for found in _BRACKETS.finditer(text):
        mark = text[found.start()]
        if mark in "{[":
            level += 1
            if level > depth:
                return True
        elif mark in "}]":
            level -= 1
    return False


def more_values_than(most: int, text: bytes) -> bool:
    """Whether there are more values in JSON text: each takes up to a hundred times its bytes when parsed."""
    # A count of the whole settles nearly every text; commas in its strings are no values.
    return _separators(text) > most and _separators(_STRING.sub(b"", text)) > most


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NotJson(f"not valid JSON: {text[:20]} is too large a number")
    return number


def _no_constant(name: str) -> Any:
    raise NotJson(f"not valid JSON: {name} is not JSON")


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_HALF = re.compile("[\ud800-\udfff]")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(r'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
