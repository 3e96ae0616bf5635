"""The line that a journal keeps of an event, and the event made of it again: the same bytes."""

import json
from hashlib import sha256
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.agent.events import Event, compact, encode, expand, without_number
from agentmgr.protocol import FINAL_ANSWER, PARTIAL_ANSWER

texts = st.text(st.characters(codec=None))  # also halves of characters: an author may cut one
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda v: st.lists(v) | st.dictionaries(texts, v)
)
ids = st.text(st.characters(codec="utf-8"), min_size=1)
events = st.builds(
    Event,
    event=st.sampled_from([PARTIAL_ANSWER, FINAL_ANSWER]) | texts,
    content=texts | plain,
    metadata=st.dictionaries(texts, plain, max_size=2),
    step_id=st.none() | st.just("turn_1") | ids,
)
ms = st.integers(min_value=0, max_value=4_102_444_800_000)  # until 2100


@given(events, ids, st.none() | st.just("turn_1") | ids, ms, st.integers(min_value=1, max_value=2**63))
def test_what_is_made_of_a_line_are_the_bytes_of_the_event(event, session_id, step_id, at, seq):
    with patch("time.time_ns", return_value=at * 1_000_000):
        line = compact(event, session_id=session_id, step_id=step_id)
        text = encode(event, session_id=session_id, step_id=step_id)
    prefix = sha256(session_id.encode()).hexdigest()[:8].encode()
    numbered = expand(line, seq, session_id=session_id, step_id=step_id)
    assert numbered == b'%b,"seq":%d,"event_id":"evt_%b-%d"}' % (text[:-1], seq, prefix, seq)
    assert without_number(numbered, seq) == text
    assert b"\n" not in line
    assert json.loads(text)["event"] == event.event


def test_of_a_piece_of_an_answer_only_the_time_and_the_text_are_kept():
    with patch("time.time_ns", return_value=1_795_982_576_007_999_999):
        line = compact(Event(PARTIAL_ANSWER, 'say "hi"'), session_id="ses_1", step_id="turn_1")
    assert line == b'1795982576007 "say \\"hi\\""'
    text = json.loads(expand(line, 7, session_id="ses_1", step_id="turn_1"))
    assert text["timestamp"] == "2026-11-29T20:02:56.007Z"
    assert (text["seq"], text["step_id"], text["content"]) == (7, "turn_1", 'say "hi"')
