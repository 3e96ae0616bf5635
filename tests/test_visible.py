"""What may be shown of text from elsewhere: it stays readable, and nothing in it acts on the terminal."""

from __future__ import annotations

import json
import re
import tomllib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentmgr.visible import ProgramOutput, json_text, toml_text, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too

ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;PWNED\x07", r"\x1b]0;PWNED\x07"),
        ("a\r\nError: forged", r"a\r\nError: forged"),
        ("\x9b2J", r"\x9b2J"),
        ("invoice\u202efdp.exe", r"invoice\u202efdp.exe"),
        ("half \ud83d", r"half \ud83d"),
        ("\u2028", r"\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("你好 👩\u200d💻 é", "你好 👩\u200d💻 é"),
    ],
)
def test_what_would_act_is_written_as_python_writes_it(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_are_kept_where_lines_are_meant() -> None:
    assert visible("a\r\n\tb\rc", lines=True) == "a\n\tb\\rc"


@given(ANY_TEXT, st.booleans())
@example("\x9b", False)
def test_nothing_that_acts_is_left(text: str, lines: bool) -> None:
    shown = visible(text, lines=lines)
    assert not ACTS.search(shown)
    assert lines or "\n" not in shown
    shown.encode()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
)


@given(PLAIN, st.sampled_from([None, 2]))
def test_json_keeps_each_value_and_shows_nothing_that_acts(value: Any, indent: int | None) -> None:
    text = json_text(value, indent=indent)
    assert json.loads(text) == value
    assert not ACTS.search(text)


def test_json_stays_readable_in_any_language() -> None:
    assert json_text({"名": "é"}) == '{"名":"é"}'


@given(st.text())
@example("\x7f\u202e\U000e0041")
def test_toml_keeps_each_text_and_shows_nothing_that_acts(text: str) -> None:
    written = toml_text(text)
    assert tomllib.loads(f"x = {written}") == {"x": text}
    assert not ACTS.search(written)


def test_a_service_may_colour_its_output_and_no_more() -> None:
    output = ProgramOutput()
    assert output.feed(b"\x1b[31mred\x1b[0m\tand\r\n") == "\x1b[31mred\x1b[0m\tand\n"
    assert output.feed(b"\x1b[2J\x1b]0;title\x07\x08") == r"\x1b[2J\x1b]0;title\x07\x08"
    assert output.feed(b"\x9b \xc2\x9b") == r"\x9b \x9b"


@given(st.lists(st.sampled_from(["\x1b[1;31m", "\x1b", "[", "é", "👩", "\u202e", "a", "\n"])), st.data())
def test_output_that_is_cut_anywhere_is_shown_as_in_one_piece(parts: list[str], data: st.DataObject) -> None:
    whole = "".join(parts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    output = ProgramOutput()
    edges = [0, *cuts, len(whole)]
    shown = "".join(output.feed(whole[a:b]) for a, b in pairwise(edges)) + output.end()
    at_once = ProgramOutput()
    assert shown == at_once.feed(whole) + at_once.end()
    assert not ACTS.search(re.sub(r"\x1b\[[0-9;]*m", "", shown))
