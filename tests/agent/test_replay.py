"""The replay buffer against a model: all events ever, of which it holds the newest."""

from hypothesis import given
from hypothesis import strategies as st

from agentmgr.agent.replay import BEHIND, Gap, Reader, ReplayBuffer

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


JUMPING = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "jump", "read"]), st.integers(1, 9)),
        st.tuples(st.sampled_from(["show", "ack"]), st.integers(1, 60)),
    ),
    max_size=60,
)


@given(JUMPING, st.integers(2, 60))
def test_a_jump_costs_no_reader_an_event_and_shows_none_that_is_not_committed(steps, max_events):
    buffer = ReplayBuffer(max_events=max_events, max_bytes=1000, journaled=True)
    reader = Reader(buffer, sent=0)
    said, got, jumps, committed = {}, [], [], 0
    for what, value in steps:
        if what == "append":
            if len(dict(buffer.held())) < max_events:  # else it waits for the journal
                said[buffer.append(b"%d" % len(said))] = b"%d" % len(said)
        elif what == "jump":
            buffer.jump(buffer.last_seq + value)
            jumps.append(buffer.last_seq)
        elif what == "show":
            committed = max(committed, *(seq for seq in (0, *said) if seq <= value))
            buffer.show(committed)
        elif what == "ack":
            reader.ack(value)
        elif (item := reader.next()) is None:
            assert got == [text for seq, text in said.items() if seq <= committed]
        elif item is BEHIND:
            last = min(buffer.first_seq - 1, buffer.visible)
            reader.fill([(seq, said[seq]) for seq in range(reader.sent + 1, last + 1) if seq in said], last)
            assert last <= max(committed, *(to for to in (0, *jumps)))
        elif isinstance(item, Gap):
            assert not said.keys() & range(item.first, item.last + 1)
        else:
            got.append(item)
            assert got == [text for seq, text in said.items() if seq <= committed][: len(got)]
    assert buffer.size_bytes == sum(len(text) for _, text in buffer.held())


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
