"""What a client may send, and how each kind of bad input is named."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.agent.incoming import BadInput, parse, sequence_number, text_of
from agentmgr.jsontext import MAX_DEPTH

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def code_of(frame, max_bytes=1000):
    with pytest.raises(BadInput) as caught:
        parse(text_of(frame, max_bytes))
    return caught.value.code


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xff\xfe", "not_utf8"),
        ("x" * 1001, "too_large"),
        ("é" * 501, "too_large"),  # in bytes, not in characters
        ("{", "invalid_json"),
        ('{"event": NaN}', "invalid_json"),
        ('{"event": "user.message", "content": "\\ud800"}', "invalid_json"),
        ("[" * (MAX_DEPTH + 1), "too_deep"),
        ('{"event": "e", "content": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "too_deep"),
        ("[]", "invalid_event"),
        ("{}", "invalid_event"),
        ('{"event": 5}', "invalid_event"),
        ('{"event": "user.message", "session_id": 5}', "invalid_field"),
        ('{"event": "user.message", "step_id": []}', "invalid_field"),
        ('{"event": "user.message", "metadata": "x"}', "invalid_field"),
    ],
)
def test_each_kind_of_bad_input_has_its_code(frame, code):
    assert code_of(frame) == code


def test_brackets_inside_strings_are_not_depth():
    text = json.dumps({"event": "user.message", "content": "[{" * 200 + '\\"'})
    assert parse(text).content == "[{" * 200 + '\\"'


def test_unknown_fields_are_ignored_and_a_bare_ping_is_one():
    assert parse('{"event": "user.message", "colour": "red"}').event == "user.message"
    assert parse('{"type": "ping"}').event == "ping"


@pytest.mark.parametrize("last_seq", [-1, 1.5, "7", True, [], {}])
def test_a_sequence_number_is_a_whole_number(last_seq):
    with pytest.raises(BadInput, match="last_seq must be a whole number"):
        sequence_number(parse(json.dumps({"event": "e", "last_seq": last_seq})), "last_seq")


def test_a_sequence_number_may_be_in_the_content_or_in_an_event_id():
    assert sequence_number(parse('{"event": "e", "content": {"last_seq": 7}}'), "last_seq") == 7
    assert sequence_number(parse('{"event": "e", "last_event_id": "evt_00-12"}'), "seq") == 12
    assert sequence_number(parse('{"event": "e"}'), "seq") == 0


@given(st.text() | st.binary() | JSON.map(json.dumps))
def test_any_frame_is_an_event_or_bad_input(frame):
    with suppress(BadInput):
        sequence_number(parse(text_of(frame, 10_000)), "last_seq")


@given(st.dictionaries(st.sampled_from(["event", "type", "session_id", "step_id", "content", "metadata",
                                        "last_seq", "last_event_id"]), JSON))  # fmt: skip
def test_any_object_is_an_event_or_bad_input(fields):
    with suppress(BadInput):
        sequence_number(parse(json.dumps(fields)), "last_seq")
