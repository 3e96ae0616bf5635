"""The frame tracker, with wsproto as the oracle."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.frame_protocol import FrameProtocol, Opcode

from agentmgr.websocket.frames import FrameTracker, FrameViolation, close_frame


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame of any kind, right or wrong."""
    length = len(payload)
    mark = 0x80 if masked else 0
    if length < 126:
        head = bytes([opcode | (0x80 if fin else 0), mark | length])
    elif length < 2**16:
        head = bytes([opcode | (0x80 if fin else 0), mark | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([opcode | (0x80 if fin else 0), mark | 127]) + length.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = b"\x01\x02\x03\x04"
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def tracked(*chunks: bytes, masked: bool = True, limit: int = 0) -> FrameTracker:
    tracker = FrameTracker(masked=masked, max_message_bytes=limit)
    for chunk in chunks:
        tracker.feed(chunk)
    return tracker


payloads = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"x" * n for n in (125, 126, 127, 65535, 65536)])
)
messages = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text(max_size=50)),
        st.tuples(st.just("bytes"), payloads),
        st.tuples(st.just("fragments"), st.lists(st.binary(max_size=200), min_size=1, max_size=4)),
        st.tuples(st.just("ping"), st.binary(max_size=125)),
    ),
    max_size=6,
)


def written(client: bool, what: list[tuple[str, object]], close: tuple[int, str] | None) -> bytes:
    """What wsproto itself would send."""
    protocol = FrameProtocol(client, [])
    data = b""
    for kind, value in what:
        if kind == "fragments":
            assert isinstance(value, list)
            for index, part in enumerate(value):
                data += protocol.send_data(part, fin=index == len(value) - 1)
        elif kind == "ping":
            data += protocol.ping(value)  # type: ignore[arg-type]
        else:
            data += protocol.send_data(value, fin=True)  # type: ignore[arg-type]
    if close is not None:
        data += protocol.close(*close)
    return data


def cut(data: bytes, draw: st.DataObject) -> list[bytes]:
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=30).map(sorted), label="cuts")
    return [data[a:b] for a, b in pairwise([0, *places, len(data)])]


@given(
    st.booleans(),
    messages,
    st.none() | st.tuples(st.sampled_from([1000, 1001, 3999]), st.text(max_size=30)),
    st.data(),
)
def test_it_sees_what_wsproto_sees(
    client: bool, what: list[tuple[str, object]], close: tuple[int, str] | None, draw: st.DataObject
) -> None:
    data = written(client, what, close)
    oracle = Connection(ConnectionType.SERVER if client else ConnectionType.CLIENT)
    tracker = FrameTracker(masked=client)
    complete, closed = 0, None
    for chunk in cut(data, draw):
        tracker.feed(chunk)
        oracle.receive_data(chunk)
        for event in oracle.events():
            if isinstance(event, TextMessage | BytesMessage):
                complete += event.message_finished
            elif isinstance(event, CloseConnection):
                closed = event
        # wsproto reports a message when its last byte is there, and so does the tracker.
        assert tracker.messages == complete
    assert tracker.partial == 0
    assert tracker.closed is (closed is not None)
    if closed is not None:
        assert (tracker.close_code, tracker.close_reason) == (closed.code, closed.reason or "")


@given(st.booleans(), messages, st.data())
def test_partial_is_the_distance_to_the_last_frame_end(
    client: bool, what: list[tuple[str, object]], draw: st.DataObject
) -> None:
    """The property that makes injecting a close frame legal."""
    data = written(client, what, None)
    ends = {0}
    position = 0
    for kind, value in what:
        parts = value if kind == "fragments" else [value]
        for part in parts:  # type: ignore[attr-defined]
            size = len(part.encode()) if isinstance(part, str) else len(part)
            position += 2 + (0 if size < 126 else 2 if size < 65536 else 8) + (4 if client else 0) + size
            ends.add(position)
    tracker, fed = FrameTracker(masked=client), 0
    for chunk in cut(data, draw):
        tracker.feed(chunk)
        fed += len(chunk)
        assert fed - tracker.partial == max(end for end in ends if end <= fed)


frames = st.builds(
    frame, st.sampled_from([0, 1, 2, 3, 0x42, 8, 9]), payloads, fin=st.booleans(), masked=st.booleans()
)


@given(st.booleans(), st.lists(frames, max_size=4), st.sampled_from([0, 60, 130]), st.data())
def test_the_short_cut_for_whole_messages_changes_nothing(
    masked: bool, sent: list[bytes], limit: int, draw: st.DataObject
) -> None:
    outcomes = []
    chunks = draw.draw(st.sampled_from([sent, cut(b"".join(sent), draw)]))
    for short_cut in (True, False):
        tracker, fault = FrameTracker(masked=masked, max_message_bytes=limit), None
        for chunk in chunks:
            if short_cut and tracker.is_message(bytearray(chunk + bytes(4)), len(chunk)):
                continue
            try:
                tracker.feed(chunk)
            except FrameViolation as violation:
                fault = (violation.code, violation.safe)
                break
        state = {name: getattr(tracker, name) for name in FrameTracker.__slots__}
        del state["_opcode"]  # between two frames it is of no meaning
        outcomes.append((fault, state))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535])
@pytest.mark.parametrize("masked", [True, False])
def test_a_whole_message_takes_the_short_cut(size: int, masked: bool) -> None:
    data = frame(2, b"x" * size, masked=masked)
    tracker = FrameTracker(masked=masked)
    assert tracker.is_message(bytearray(data + bytes(4)), len(data))
    assert not tracker.is_message(bytearray(data + bytes(4)), len(data) - 1)


def test_one_byte_at_a_time() -> None:
    data = frame(1, b"a" * 70_000) + frame(8, b"\x03\xe8bye")
    tracker = tracked(*(data[i : i + 1] for i in range(len(data))))
    assert (tracker.messages, tracker.close_code, tracker.close_reason) == (1, 1000, "bye")


def test_control_frames_between_fragments_are_not_messages() -> None:
    tracker = tracked(frame(1, b"a", fin=False) + frame(9, b"ping") + frame(0, b"b"))
    assert (tracker.messages, tracker.data_frames) == (1, 2)


@pytest.mark.parametrize("first", [0x81, 0x89, 0x88, 0x80])
def test_an_unmasked_client_frame_ends_it(first: int) -> None:
    good = frame(1, b"fine")
    with pytest.raises(FrameViolation) as caught:
        tracked(good + bytes([first, 0x00]))
    assert (caught.value.code, caught.value.safe) == (1002, len(good))


def test_a_length_with_the_highest_bit_is_no_length() -> None:
    with pytest.raises(FrameViolation) as caught:
        tracked(b"\x82\xff" + b"\x80" + bytes(7) + b"mask")
    assert caught.value.code == 1002


def test_a_frame_that_claims_to_be_huge_is_followed_in_constant_memory() -> None:
    tracker = tracked(b"\x82\xff" + (2**62).to_bytes(8, "big") + b"mask", b"x" * 1000)
    assert tracker.partial == 1014
    assert tracker._left == 2**62 - 1000


def test_a_frame_that_claims_to_be_huge_breaks_the_limit_before_its_payload_comes() -> None:
    with pytest.raises(FrameViolation) as caught:
        tracked(b"\x82\xff" + (2**62).to_bytes(8, "big"), limit=100)
    assert (caught.value.code, caught.value.safe) == (1009, 0)


def test_the_limit_counts_all_fragments_of_a_message() -> None:
    within = frame(2, b"x" * 60, fin=False) + frame(0, b"x" * 40)
    assert tracked(within, within, limit=100).messages == 2
    with pytest.raises(FrameViolation) as caught:
        tracked(frame(2, b"x" * 60, fin=False), frame(0, b"x" * 41), limit=100)
    assert caught.value.code == 1009


def test_a_violation_in_a_header_that_is_on_its_way_already_is_not_at_a_boundary() -> None:
    tracker = tracked(frame(1, b"fine"), b"\x81")
    with pytest.raises(FrameViolation) as caught:
        tracker.feed(b"\x01a")
    assert (caught.value.safe, tracker.partial) == (0, 1)


@given(st.binary(max_size=300), st.data())
def test_garbage_is_refused_or_followed_and_nothing_else(data: bytes, draw: st.DataObject) -> None:
    """Bad opcodes, reserved bits, close frames with one byte: all are the backend's to judge."""
    whole = FrameTracker(masked=True, max_message_bytes=1000)
    pieces = FrameTracker(masked=True, max_message_bytes=1000)
    outcomes = []
    for tracker, chunks in ((whole, [data]), (pieces, cut(data, draw))):
        position, verdict = 0, None
        for chunk in chunks:
            try:
                tracker.feed(chunk)
            except FrameViolation as fault:
                # The first byte that is not safe, or that was passed on already as part of a header.
                verdict = (fault.code, position + fault.safe - tracker.partial)
                break
            position += len(chunk)
        outcomes.append((verdict, tracker.messages, tracker.closed, tracker.close_code))
    assert outcomes[0] == outcomes[1]


def test_a_hostile_close_frame_does_not_grow() -> None:
    tracker = tracked(b"\x88\xff" + (2**40).to_bytes(8, "big") + b"mask", *[b"x" * 4096] * 100)
    assert len(tracker._close_payload) <= 260


@pytest.mark.parametrize("masked", [True, False])
@given(
    st.one_of(st.integers(1000, 1003), st.integers(1007, 1013), st.integers(3000, 4999)),
    st.text(st.characters(codec="utf-8")),
)
def test_a_close_frame_is_what_wsproto_reads(masked: bool, code: int, reason: str) -> None:
    protocol = FrameProtocol(not masked, [])
    data = close_frame(code, reason, masked=masked)
    protocol.receive_bytes(data)
    (received,) = protocol.received_frames()
    assert received.opcode is Opcode.CLOSE
    got, text = received.payload
    assert got == code
    assert reason.startswith(text or "")
    assert len(data) <= 2 + 4 + 125


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536])
def test_codes_that_must_not_be_sent_are_not(code: int) -> None:
    with pytest.raises(ValueError, match="close code"):
        close_frame(code, masked=False)
