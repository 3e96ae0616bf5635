"""One rule for JSON text: what is taken can be said, and comes back equal."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.jsontext import MAX_DEPTH, MAX_DEPTH_SAID, NotJson, TooDeep, deeper_than, encode, in_utf8, parse

NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
STRINGS = st.text().map(json.dumps) | st.lists(
    st.sampled_from([r"\ud83d", r"\ude00", "x", "[", r"\"", r"\\", "é"]), max_size=6
).map(lambda parts: '"' + "".join(parts) + '"')
TEXTS = st.recursive(
    NUMBERS | STRINGS | st.sampled_from(["null", "true", "NaN", "-Infinity", "1" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(STRINGS, inner), max_size=4).map(
            lambda members: "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"
        )
    ),
)


@given(TEXTS | st.text() | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary())
def test_what_is_taken_can_be_said_and_comes_back_equal(text):
    try:
        value = parse(text)
    except NotJson:
        return
    assert parse(in_utf8(encode(value))) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1e999", "too large a number"),
        ("[-1E+999]", "too large a number"),
        ("NaN", "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ("1" * 5000, "too many digits"),
        (r'"\ud800"', "half of a character"),
        (r'{"\udfff": 1}', "half of a character"),
        ('"\ud800"', "half of a character"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ('"x"'.encode("utf-16"), "utf-8"),
        ("[" * 10_000, "64 deep"),
        ("", "Expecting value"),
    ],
)
def test_what_could_not_be_said_again_is_refused(text, reason):
    with pytest.raises(NotJson, match=reason):
        parse(text)


def test_the_smallest_numbers_and_whole_characters_are_taken():
    assert parse("[1e-999, 1e308, -0.0]") == [0.0, 1e308, 0.0]
    assert parse(rb'"\ud83d\ude00"') == parse('"😀"') == "😀"
    assert parse(r'"\\ud83d"') == r"\ud83d"
    assert parse("{}".encode("utf-8-sig")) == {}


def test_of_two_members_of_one_name_the_last_counts():
    assert parse('{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize("depth", [1, MAX_DEPTH, MAX_DEPTH + 1])
def test_the_deepest_is_taken_and_one_more_is_not(depth):
    text = "[" * depth + '"][}{\\"[["' + "]" * depth
    if depth > MAX_DEPTH:
        with pytest.raises(TooDeep):
            parse(text)
    else:
        assert encode(parse(text)) == text


@given(st.integers(0, 6), TEXTS)
def test_depth_is_that_of_lists_and_objects_outside_of_strings(depth, text):
    def depth_of(value):
        if isinstance(value, list | dict):
            inner = value.values() if isinstance(value, dict) else value
            return 1 + max(map(depth_of, inner), default=0)
        return 0

    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: dict(enumerate(v for _, v in pairs)))
    except ValueError:
        return
    assert deeper_than(depth, text) is (depth_of(value) > depth)


class Circle(list):
    pass


def test_what_an_author_says_is_refused_where_no_client_could_read_it():
    circle, deep = Circle(), []
    circle.append(circle)
    for _ in range(MAX_DEPTH_SAID):
        deep = [deep]
    for value in (circle, deep, [deep] * 2, math.inf, {"x": [math.nan]}, {math.inf: 1}, 10**5000):
        with pytest.raises(ValueError, match=r"nested|JSON|ircular|digits"):
            encode(value)
    deeper = []
    for _ in range(100_000):
        deeper = [deeper]
    with pytest.raises(TooDeep):
        encode(deeper)
    while deeper:  # or its end would be one long recursion
        deeper = deeper.pop()


def test_half_of_a_character_from_an_author_is_said_as_its_escape():
    assert in_utf8(encode({"a\ud83d": "é\ude00"})) == '{"a\\ud83d":"é\\ude00"}'.encode()
    assert json.loads(in_utf8(encode("\ud83d"))) == "\ud83d"
