"""What a host keeps of a session is there for the next one; one host holds it."""

from contextlib import closing, contextmanager

import pytest
import trio
from attrs import evolve

from agentmgr.journal import schema, sqlite_archive
from agentmgr.journal.journal import (
    FRAMES_LOADED,
    Accepted,
    Answered,
    Asked,
    HeldElsewhere,
    Kept,
    Question,
    SessionEnded,
    SessionNameTaken,
    Started,
    TurnEnded,
    TurnRecord,
    TurnStatus,
    Used,
)

TURN = TurnRecord(1, "turn_1", '{"content":"hello"}', 2.0)


@contextmanager
def held_elsewhere(by):
    with pytest.raises(HeldElsewhere) as caught:
        yield
    assert caught.value.holder == by


async def test_what_was_handed_over_is_there_for_the_next_host(any_hosts):
    async with any_hosts.one() as (_, copy):
        copy.held.write(Accepted(TURN), Started(1, 1, 2.5))
        copy.say("one", "two", turn=1)
        copy.held.write(Asked(Question("ask_1", "{}", 3.0)), Asked(Question("ask_2", '{"tool":"x"}', 3.5)))
        copy.held.write(Answered("ask_1"), Kept(state='{"a":1}'), Used(10, 20), Used(1, 2))
        await copy.held.settled()
        copy.say("three", turn=1)
    async with any_hosts.open("inst_2") as journal:
        found = (await journal.take_up("ses_1")).loaded
    assert [(frame.seq, frame.turn, frame.line) for frame in found.frames] == [
        (1, 1, b"one"),
        (2, 1, b"two"),
        (3, 1, b"three"),
    ]
    (turn,) = found.turns
    assert (turn.status, turn.attempts, turn.started_at) == (TurnStatus.RUNNING, 1, 2.5)
    assert [question.step_id for question in found.questions] == ["ask_2"]
    record = found.record
    assert (record.last_seq, record.last_turn, record.state) == (3, 1, '{"a":1}')
    assert (record.input_tokens, record.output_tokens) == (11, 22)


async def test_the_end_of_a_turn_and_what_the_author_keeps_are_one_transaction(any_hosts):
    async with any_hosts.one() as (_, copy):
        copy.held.write(Accepted(TURN), Kept(state="{}", memory="[1]", history="[]", history_turn=0))
        ended = TurnEnded(1, "agent.final_answer", '{"role":"assistant"}', 4.0)
        copy.held.write(ended, Kept(state='{"a":2}'))
    async with any_hosts.open("inst_2") as journal:
        found = (await journal.take_up("ses_1")).loaded
    assert (found.turns[0].status, found.turns[0].ended_by) == (TurnStatus.ENDED, "agent.final_answer")
    assert (found.record.state, found.record.memory, found.record.history) == ('{"a":2}', "[1]", "[]")
    assert found.record.last_used_at >= 4.0


async def test_a_session_without_any_change_leaves_nothing(any_hosts):
    async with any_hosts.one():
        pass
    async with any_hosts.open("inst_2") as journal:
        assert await journal.take_up("ses_1") is None


async def test_an_event_is_called_back_once_it_is_committed(any_hosts):
    async with any_hosts.one() as (journal, copy):
        copy.say("one")
        assert copy.visible == 0
        await copy.held.settled()
        assert copy.visible == 1
        (stored,) = await copy.held.frames(1, 9, max_bytes=100)
        assert (stored.seq, stored.step_id, stored.line) == (1, None, b"one")
        assert journal.degraded is None


async def test_old_events_are_read_in_pieces(any_hosts):
    async with any_hosts.one() as (_, copy):
        copy.held.write(Accepted(TURN))
        for number in range(100):
            copy.say(f"{number}" * 10, turn=1)
            await copy.held.settled()
        read = []
        while len(read) < 90:
            read += await copy.held.frames(len(read) + 1, 90, max_bytes=100)
        assert [frame.seq for frame in read] == list(range(1, 91))
        assert {frame.step_id for frame in read} == {"turn_1"}
        assert (await copy.held.frames(7, 7, max_bytes=1))[0].line == b"6" * 10
        assert list(await copy.held.frames(101, 200, max_bytes=100)) == []


async def test_of_a_long_session_the_last_events_are_loaded_and_all_can_be_read(any_hosts):
    number = FRAMES_LOADED + 1000
    async with any_hosts.one() as (_, copy):
        copy.say(*(f"{n}" for n in range(1, number + 1)))
    async with any_hosts.open("inst_2") as journal:
        held = await journal.take_up("ses_1")
        loaded = [frame.seq for frame in held.loaded.frames]
        assert loaded == list(range(number - FRAMES_LOADED + 1, number + 1))
        read = await held.frames(1, number, max_bytes=2**20)
        assert [int(frame.line) for frame in read] == list(range(1, number + 1))


async def test_a_holder_that_lives_is_not_robbed_and_a_released_session_is_anyones(any_hosts):
    async with any_hosts.one() as (_, copy), any_hosts.open("inst_2") as other:
        copy.say("one")
        await copy.held.settled()
        with held_elsewhere(by="inst_1"):
            await other.take_up("ses_1")
        await copy.held.release()
        taken = await any_hosts.take_up(other)
        taken.say("two")
        await taken.held.settled()
        assert taken.visible == 2


async def test_who_lost_a_session_writes_nothing_more(any_hosts):
    async with any_hosts.one() as (_, copy), any_hosts.open("inst_2") as other:
        copy.say("one")
        await copy.held.settled()
        await any_hosts.revoke("inst_1")
        taken = await any_hosts.take_up(other)
        copy.say("stale")
        copy.held.write(Accepted(TURN))
        await copy.held.settled()
        assert (copy.is_lost, copy.visible) == (True, 1)
        taken.say("two")
        await taken.held.settled()
        assert [frame.line for frame in await taken.held.frames(1, 9, max_bytes=100)] == [b"one", b"two"]
        assert (await other.take_up("ses_1")).loaded.turns == []


async def test_an_instance_of_the_same_id_that_starts_after_it_was_revoked_may_hold(any_hosts):
    async with any_hosts.open("inst_1"):
        await any_hosts.revoke("inst_1")
        async with any_hosts.one() as (_, copy), any_hosts.open("inst_2") as other:
            copy.say("one")
            await copy.held.settled()
            with held_elsewhere(by="inst_1"):
                await other.take_up("ses_1")


async def test_a_name_is_of_one_session_of_its_owner_until_that_ends(any_hosts):
    async with any_hosts.open("inst_1") as journal:
        first = await any_hosts.create(journal, "ses_1", owner="ann", name="plans")
        await any_hosts.create(journal, "ses_2", owner="bob", name="plans")
        with pytest.raises(SessionNameTaken) as caught:
            await any_hosts.create(journal, "ses_3", owner="ann", name="plans")
        assert caught.value.session_id == "ses_1"
        first.held.write(SessionEnded("ended", 5.0))
        await first.held.settled()
        await any_hosts.create(journal, "ses_4", owner="ann", name="plans")


async def test_a_session_that_has_ended_is_shown_and_not_claimed(any_hosts):
    async with any_hosts.one() as (journal, copy):
        copy.held.write(SessionEnded("ended", 5.0))
        await copy.held.release()
        found = await any_hosts.take_up(journal)
        assert (found.record.ended_at, found.record.end_reason) == (5.0, "ended")
        found.say("more")
        await found.held.settled()
        assert found.is_lost


async def test_unfinished_turns_of_holders_that_are_gone_are_found(any_hosts):
    async with any_hosts.one() as (_, copy):
        copy.held.write(Accepted(TURN))
        await copy.held.settled()
        async with any_hosts.open("inst_2") as other:
            assert await other.unfinished() == []
    async with any_hosts.open("inst_2") as other:
        assert await other.unfinished() == ["ses_1"]


ANSWER = '{"role":"assistant","content":"all that was said, and \\"more\\" of it: \u00fc"}'
END = f'{{"event":"agent.final_answer","content":{ANSWER[30:-1]},"metadata":{{}}}}'


async def answered(hosts, journal, *, at_once=True):
    """A session with a turn and its answer."""
    copy = await hosts.create(journal)
    copy.held.write(Accepted(TURN), Started(1, 1, 2.5))
    copy.say("one", turn=1)
    await copy.held.settled()
    copy.say(END, turn=1)
    if not at_once:  # as journals were written before
        await copy.held.settled()
    copy.held.write(TurnEnded(1, "agent.final_answer", ANSWER, 4.0))
    await copy.held.settled()
    return copy


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_answer_is_stored_once_and_is_in_its_event_as_it_was_said(hosts, at_once):
    async with hosts.open("inst_1") as journal:
        copy = await answered(hosts, journal, at_once=at_once)
        with closing(schema.connect(hosts.path)) as db:
            lines = db.execute("SELECT lines FROM frames ORDER BY id").fetchall()
        assert (b"all that was said" in lines[-1][0]) != at_once
        assert [frame.line.decode() for frame in await copy.held.frames(2, 2, max_bytes=1)] == [END]
        assert [frame.line.decode() for frame in sqlite_archive.events(hosts.path, "ses_1")] == ["one", END]
        assert [
            frame.line.decode() for frame in sqlite_archive.events_with(hosts.path, "ses_1", "final")
        ] == [END]
    async with hosts.open("inst_2") as journal:
        found = (await journal.take_up("ses_1")).loaded
    assert [frame.line.decode() for frame in found.frames] == ["one", END]
    assert found.turns[0].answer == ANSWER


async def test_an_answer_stays_when_its_host_writes_the_turn_anew_without_it(hosts):
    async with hosts.open("inst_1") as journal:
        copy = await answered(hosts, journal)
        copy.turns[1] = evolve(TURN, status=TurnStatus.ENDED, ended_by="agent.final_answer")
        journal._degrade("as if it could not be written")
        copy.say("two")
        while journal.degraded is not None:  # noqa: ASYNC110 - a journal does not announce it
            await trio.sleep(0.01)
        assert sqlite_archive.session(hosts.path, "ses_1")[1].turns[0].ended_at is None  # it was written anew
        lines = [frame.line.decode() for frame in await copy.held.frames(1, 9, max_bytes=1000)]
        assert lines == ["one", END, "two"]


async def test_answers_count_in_what_is_read_at_once(any_hosts):
    async with any_hosts.open("inst_1") as journal:
        copy = await answered(any_hosts, journal)
        for number in range(2, 12):
            copy.held.write(Accepted(evolve(TURN, number=number, step_id=f"turn_{number}")))
            copy.say(END, turn=number)
            copy.held.write(TurnEnded(number, "agent.final_answer", ANSWER, 4.0))
        await copy.held.settled()
        read = await copy.held.frames(1, 99, max_bytes=3 * len(END))
        assert [frame.seq for frame in read] == [1, 2, 3]
        assert [frame.seq for frame in await copy.held.frames(4, 99, max_bytes=1)] == [4]
