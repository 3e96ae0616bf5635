"""The replay buffer against a model: all events ever, of which it holds the newest."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.agent.replay import Gap, Reader, ReplayBuffer

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=8)),
        st.tuples(st.just("read"), st.just("")),
        st.tuples(st.just("ack"), st.integers(0, 60)),
        st.tuples(st.just("reconnect"), st.integers(0, 60)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 8), st.integers(1, 40))
def test_a_reader_gets_every_event_once_in_order_or_is_told_of_the_gap(steps, max_events, max_bytes):
    buffer = ReplayBuffer(max_events=max_events, max_bytes=max_bytes)
    reader, everything, position = Reader(buffer, sent=0), [], 0
    for what, value in steps:
        if what == "append":
            everything.append(value)
            assert buffer.append(value) == len(everything)
        elif what == "ack":
            reader.ack(value)
        elif what == "reconnect":
            position = min(value, buffer.last_seq)
            reader = Reader(buffer, sent=position)
        else:
            item = reader.next()
            if item is None:
                assert position == len(everything)
            elif isinstance(item, Gap):
                assert item.first == position + 1
                assert item.last < buffer.first_seq
                position = item.last
            else:
                assert item == everything[position]
                position += 1
        held = everything[buffer.first_seq - 1 :]
        assert buffer.last_seq == len(everything)
        assert buffer.size_bytes == sum(map(len, held))
        assert len(held) <= max_events
        assert buffer.size_bytes <= max_bytes or len(held) == 1


def test_the_newest_event_is_held_whatever_its_size():
    buffer = ReplayBuffer(max_events=10, max_bytes=5)
    buffer.append(b"ab")
    buffer.append(b"far too long")
    assert buffer.first_seq == 2
    assert buffer.get(2) == b"far too long"


def test_acknowledged_events_are_forgotten_and_unsent_ones_are_not():
    buffer = ReplayBuffer(max_events=10, max_bytes=1000)
    for text in (b"a", b"b", b"c"):
        buffer.append(text)
    reader = Reader(buffer, sent=0)
    reader.next()
    reader.ack(3)  # it was sent only the first
    assert buffer.first_seq == 2
    assert reader.next() == b"b"


def test_a_full_buffer_would_lose_what_a_reader_still_needs_and_only_that():
    buffer = ReplayBuffer(max_events=2, max_bytes=1000)
    reader = Reader(buffer, sent=0)
    buffer.append(b"a")
    assert not buffer.would_lose(reader.needed_from)
    buffer.append(b"b")
    assert buffer.would_lose(reader.needed_from)
    reader.next()
    assert not buffer.would_lose(reader.needed_from)
    reader.acks = True  # what was sent may still be lost on the way
    assert buffer.would_lose(reader.needed_from)
    reader.ack(1)
    assert not buffer.would_lose(reader.needed_from)


def test_a_gap_is_told_once_and_what_is_held_follows():
    buffer = ReplayBuffer(max_events=2, max_bytes=1000)
    reader = Reader(buffer, sent=0)
    for text in (b"a", b"b", b"c", b"d", b"e"):
        buffer.append(text)
    assert reader.next() == Gap(1, 3)
    assert [reader.next(), reader.next(), reader.next()] == [b"d", b"e", None]
