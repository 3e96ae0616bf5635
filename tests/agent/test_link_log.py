"""Which frame was what, found again from any place."""

import json
from random import Random

import pytest

from agentmgr.agent.link_log import MAX_ENTRIES, MAX_RAW_BYTES, CannotResume, Events, LinkLog, Pong

WITHOUT_FRAME = {2, 3, 7, 11}  # numbers of events that plain text says nothing of


def resumed(log, delivered, *, plain=False):
    again = LinkLog.load(json.loads(json.dumps(log.dump())))
    return again, again.resume(delivered, plain=plain)


def played(script, until, *, plain):
    """The frames of a script, as many as there are up to `until` in all."""
    frames = []
    for item in script:
        if isinstance(item, bytes):
            frames.append(item)
            continue
        seq, left = item.seq, item.skip + (until - len(frames) if item.count is None else item.count)
        skip = item.skip
        while left:
            if not (plain and seq in WITHOUT_FRAME):
                left -= 1
                if skip:
                    skip -= 1
                else:
                    frames.append((item.session_id, seq))
            seq += 1
    return frames


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_follows_any_frame_is_found_again(plain, seed):
    draw, log, frames, places = Random(seed), LinkLog(), [], {"a": 0, "b": 0}
    committed = log.dump()
    for _ in range(40):
        kind = draw.random()
        if kind < 0.1:
            log.raw(frame := b"answer %d" % len(frames))
            frames.append(frame)
            committed = log.dump()
        elif kind < 0.15:
            log.raw(frame := Pong(b"\xff%d" % len(frames)))
            frames.append(frame)
            committed = log.dump()
        elif kind < 0.2:
            log.mark()
            committed = log.dump()
        else:
            name = "a" if draw.random() < 0.8 else "b"
            seq = places[name] = places[name] + 1
            if plain and seq in WITHOUT_FRAME:
                log.passed(name, seq)
                continue
            if log.event(name, seq):
                committed = log.dump()
            frames.append((name, seq))
    for delivered in range(len(frames) + 1):
        try:
            script = LinkLog.load(committed).resume(delivered, plain=plain)
        except CannotResume:
            assert delivered < len(frames) - 20
            continue
        again = played(script, len(frames) - delivered, plain=plain)[: len(frames) - delivered]
        assert again == frames[delivered:]


def test_a_stream_of_events_needs_no_commit():
    log = LinkLog()
    log.raw(b"hello")
    assert [log.event("a", seq) for seq in range(1, 5)] == [True, False, False, False]
    log.raw(b"answer")
    assert not log.event("a", 5)
    assert log.event("b", 1)
    assert log.event("a", 6)


def test_what_was_under_way_for_too_long_is_not_kept():
    log = LinkLog()
    for _ in range(MAX_ENTRIES + 1):
        log.raw(b"x")
    with pytest.raises(CannotResume):
        resumed(log, 0)
    assert resumed(log, 1)[1] == [b"x"] * MAX_ENTRIES
    log.event("a", 1)
    log.raw(b"y" * (MAX_RAW_BYTES + 1))
    with pytest.raises(CannotResume):
        resumed(log, MAX_ENTRIES + 2)
    assert resumed(log, MAX_ENTRIES + 3)[1] == [Events("a", 2, 0, None)]


def test_more_than_was_sent_is_no_place_to_go_on_from():
    log = LinkLog()
    log.raw(b"x")
    with pytest.raises(CannotResume):
        resumed(log, 2)


def test_a_session_that_has_ended_is_not_asked_for_more():
    log = LinkLog()
    log.event("a", 1)
    log.ended("a")
    assert resumed(log, 1)[1] == []
    assert resumed(log, 0)[1] == [Events("a", 1, 0, 1)]
