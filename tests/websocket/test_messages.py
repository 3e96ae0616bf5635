"""A client's own half of a WebSocket: messages come whole, however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.websocket.frames import FrameViolation
from agentmgr.websocket.messages import MessageReader, masked_frame


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """As a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    width = 2 if size < 2**16 else 8
    return bytes((first, 126 if width == 2 else 127)) + size.to_bytes(width, "big") + payload


SIZES = st.sampled_from([0, 1, 2, 125, 126, 127, 300, 65_535, 65_536])
FRAMES = st.lists(st.tuples(st.sampled_from([0x81, 0x82, 0x89, 0x8A]), SIZES), max_size=5)


@given(FRAMES, st.lists(st.integers(1, 70_000), max_size=8), st.booleans())
def test_messages_are_whole_however_they_are_cut(frames, cuts, at_frames):
    said = [(first & 0x0F, bytes(size)) for first, size in frames if first < 0x89 or size < 126]
    parts = [frame(payload, 0x80 | opcode) for opcode, payload in said]
    if not at_frames:
        whole = b"".join(parts)
        places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
        parts = [whole[begin:end] for begin, end in pairwise(places)]
    reader = MessageReader(max_bytes=2**20)
    assert [message for part in parts for message in reader.feed(part)] == said


def test_a_message_in_pieces_with_a_ping_between():
    reader = MessageReader(max_bytes=100)
    data = frame(b"a", 0x01) + frame(b"ping", 0x89) + frame(b"b", 0x00) + frame(b"c", 0x80)
    assert [got for at in range(len(data)) for got in reader.feed(data[at : at + 1])] == [
        (9, b"ping"),
        (1, b"abc"),
    ]


@pytest.mark.parametrize(
    "data",
    [frame(b"a" * 200), frame(b"a", 0x80), frame(b"a", 0xC1), masked_frame(b"a" * 20)],
    ids=["too large", "out of turn", "extension", "masked"],  # the mask is random, and would be in the name
)
def test_what_no_server_says_is_a_violation(data):
    with pytest.raises(FrameViolation):
        list(MessageReader(max_bytes=100).feed(data))
