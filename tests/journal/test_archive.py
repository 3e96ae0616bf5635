"""What a manager sees of sessions and erases of them, whatever keeps them, while hosts run or not."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmgr.errors import InvalidRequest, StorageError
from agentmgr.journal.archive import Limits, Pruned, Query, SessionState
from agentmgr.journal.journal import (
    Accepted,
    Asked,
    Frame,
    Kept,
    Question,
    SessionEnded,
    Started,
    TurnEnded,
    TurnRecord,
)
from tests.journal.conftest import Copy


def turn(number=1, at=2.0):
    return TurnRecord(number, f"turn_{number}", '{"content":"hello"}', at)


async def stocked(hosts, journal):
    """A session in each state, the last used first: ses_5 … ses_1."""
    for number in range(1, 6):
        owner, name = ("ann", "Pläne") if number == 2 else (None, None)
        copy = await hosts.create(journal, f"ses_{number}", at=float(number), owner=owner, name=name)
        copy.held.write(Kept(state="{}"))
        if number == 2:
            copy.held.write(Accepted(turn(at=2.0)), Started(1, 1, 2.0))
            copy.say("one", "two", turn=1)
        if number == 3:
            copy.held.write(Accepted(turn(at=3.0)), Asked(Question("ask_1", '{"tool":"x"}', 3.5)))
        if number == 5:
            copy.held.write(SessionEnded("ended", 5.0))
        await copy.held.settled()


async def listed(hosts, cursor=None, **wanted):
    found = await hosts.archive.sessions(Query(**wanted), {hosts.service_id: cursor})
    assert not found.unreadable
    return found.values[hosts.service_id]


async def ids(hosts, **wanted):
    return [one.session_id for one in (await listed(hosts, **wanted)).items]


async def test_sessions_are_listed_the_last_used_first(any_hosts):
    hosts = any_hosts
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
        found = (await listed(hosts)).items
        assert [(one.session_id, one.state, one.instance_id) for one in found] == [
            ("ses_5", SessionState.ENDED, None),
            ("ses_4", SessionState.IDLE, "inst_1"),
            ("ses_3", SessionState.ASKING, "inst_1"),
            ("ses_2", SessionState.RUNNING, "inst_1"),
            ("ses_1", SessionState.IDLE, "inst_1"),
        ]
        first = await listed(hosts, limit=3)
        assert [one.session_id for one in first.items] == ["ses_5", "ses_4", "ses_3"]
        rest = await listed(hosts, limit=3, cursor=first.next_cursor)
        assert ([one.session_id for one in rest.items], rest.next_cursor) == (["ses_2", "ses_1"], None)
    states = [one.state for one in (await listed(hosts)).items]
    assert states[1] == states[4] == SessionState.HIBERNATED


async def test_sessions_are_found_by_state_owner_and_text(any_hosts):
    hosts = any_hosts
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
        for wanted, found in (
            ({"state": SessionState.ASKING}, ["ses_3"]),
            ({"state": SessionState.RUNNING}, ["ses_2"]),
            ({"state": SessionState.RUNNING, "owner": "bob"}, []),
            ({"state": SessionState.IDLE}, ["ses_4", "ses_1"]),
            ({"owner": "ann"}, ["ses_2"]),
            ({"text": "pl"}, ["ses_2"]),
            ({"text": "s_4"}, ["ses_4"]),
            ({"text": "pl", "state": SessionState.ENDED}, []),
        ):
            assert await ids(hosts, **wanted) == found
    with pytest.raises(InvalidRequest):
        await listed(hosts, cursor="nonsense")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    times=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    limit=st.integers(1, 4),
    state=st.sampled_from([None, SessionState.ASKING]),
)
async def test_pages_have_each_session_once_also_where_many_were_used_at_one_moment(
    any_hosts, times, limit, state
):
    hosts = any_hosts
    await hosts.lose()
    async with hosts.open("inst_1") as journal:
        for number, at in enumerate(times):
            copy = await hosts.create(journal, f"ses_{number}", at=float(at))
            copy.held.write(Asked(Question("ask", "{}", 3.5)))
            await copy.held.settled()
    seen, cursor = [], None
    while True:
        page = await listed(hosts, limit=limit, cursor=cursor, state=state)
        seen += [(one.last_used_at, one.session_id) for one in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(it for _, it in seen) == sorted(f"ses_{number}" for number in range(len(times)))
    assert [at for at, _ in seen] == sorted((float(at) for at in times), reverse=True)


async def test_one_session_its_turns_events_and_questions(any_hosts):
    hosts = any_hosts
    archive, of = hosts.archive, hosts.service_id
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
    (found,) = (await archive.session([of, "svc_none"], "ses_2")).values.values()
    summary, whole = found
    assert (summary.name, summary.turns, [one.step_id for one in whole.turns]) == ("Pläne", 1, ["turn_1"])
    assert whole.record.name == "Pläne"
    events = await archive.events(of, "ses_2", 1)
    assert [(one.seq, one.step_id, one.line, one.turn) for one in events] == [(2, "turn_1", b"two", 1)]
    assert [one.line for one in await archive.events(of, "ses_2")] == [b"one", b"two"]
    assert await archive.events_with(of, "ses_2", "tw") == [Frame(2, 1, b"two")]
    assert (await archive.messages(of, "ses_2", 0, 9))[1].step_id == "turn_1"
    assert await archive.messages(of, "ses_2", 1, 9) == {}
    assert [await archive.turn_that_runs(of, f"ses_{n}") for n in (1, 2, 3)] == [0, 1, 0]
    assert [await archive.turn_of(of, "ses_2", seq) for seq in (1, 2, 3)] == [1, 1, 0]
    (question,) = (await archive.questions([of])).values[of]
    assert (question.session_id, question.question.step_id, question.instance_id) == ("ses_3", "ask_1", None)
    assert (await archive.has_unfinished([of])).values == {of: True}
    figures = (await archive.figures([of])).values[of]
    assert (figures.sessions, figures.questions) == (5, 1)
    assert figures.bytes > 0

    assert not any((await archive.session([of], "ses_9")).values.values())
    assert not await archive.events(of, "ses_2", 2**63 - 1)
    assert await archive.events(of, "ses_9") is None
    assert (await archive.messages(of, "ses_9", 0, 9), await archive.turn_of(of, "ses_9", 1)) == ({}, 0)


async def test_a_service_without_a_journal_has_no_sessions_and_gets_none(any_hosts):
    archive, of = any_hosts.archive, [any_hosts.service_id]
    asked = archive.sessions(Query(), {of[0]: None}), archive.questions(of), archive.figures(of)
    for question in (*asked, archive.has_unfinished(of), archive.prune({of[0]: Limits(1, 1)})):
        assert (await question).values == {}
    assert not await archive.erase(of[0], "ses_1")
    await archive.remove(of[0])
    assert (await archive.figures(of)).values == {}


@pytest.mark.parametrize("held", [False, True])
async def test_an_erased_session_is_gone_and_who_holds_it_writes_nothing_more(any_hosts, held):
    hosts = any_hosts
    of = hosts.service_id
    async with hosts.open("inst_1") as journal:
        copy = await hosts.create(journal, owner="ann", name="Pläne")
        copy.held.write(Accepted(turn()), Asked(Question("ask_1", "{}", 3.5)))
        copy.say("one", turn=1)
        await copy.held.settled()
        if not held:
            await copy.held.release()
        other = await hosts.create(journal, "ses_2")
        other.say("stays")
        await other.held.settled()
        assert await hosts.archive.erase(of, "ses_1")
        assert not await hosts.archive.erase(of, "ses_1")
        assert await ids(hosts) == ["ses_2"]
        assert (await hosts.archive.questions([of])).values == {of: []}
        assert (await hosts.archive.has_unfinished([of])).values == {of: False}
        assert await journal.take_up("ses_1") is None
        assert await journal.named("ann", "Pläne") is None
        if held:
            copy.say("more")
            await copy.held.settled()
            assert copy.is_lost
        again = Copy(await journal.create(hosts.record("ses_3", owner="ann", name="Pläne")))
        await again.held.settled()
        assert await journal.named("ann", "Pläne") == "ses_3"
        await hosts.archive.remove(of)
        assert (await hosts.archive.figures([of])).values == {}


async def test_for_room_the_longest_unused_go_first_and_those_that_a_host_holds_last(any_hosts):
    hosts = any_hosts
    of = hosts.service_id

    async def pruned(max_bytes):
        return (await hosts.archive.prune({of: Limits(0, max_bytes)})).values[of].for_room

    async with hosts.open("inst_0") as journal:
        copies = [await hosts.create(journal, f"ses_{number}", at=float(number)) for number in range(60)]
        for number, copy in enumerate(copies):
            copy.say("x" * 10_000)
            if number >= 10:
                copy.held.write(Accepted(turn(at=float(number))))
                copy.held.write(TurnEnded(1, "agent.timeout", None, float(number)))
        for copy in copies:
            await copy.held.settled()
        for copy in copies[10:]:
            await copy.held.release()
        size = (await hosts.archive.figures([of])).values[of].bytes
        gone = await pruned(size // 2)
        assert 20 < len(gone) < 40
        left = (await hosts.archive.figures([of])).values[of]
        assert (left.sessions, left.bytes <= size // 2) == (60 - len(gone), True)
        assert not set(gone) & {f"ses_{number}" for number in range(10)}
        assert len(await pruned(1)) == 60 - len(gone)


async def test_sessions_that_were_not_used_for_long_are_pruned_unless_a_host_holds_them(any_hosts):
    hosts = any_hosts
    of = hosts.service_id
    async with hosts.open("inst_1") as journal:
        for number in range(1, 4):
            copy = await hosts.create(journal, f"ses_{number}", at=float(number))
            copy.say("one")
            await copy.held.settled()
        limits = {of: Limits(retention_s=10)}
        assert (await hosts.archive.prune(limits, now=12.5)).values == {of: Pruned()}
    found = await hosts.archive.prune(limits, now=12.5)
    assert found.values == {of: Pruned(unused=("ses_1", "ses_2"))}
    assert await ids(hosts) == ["ses_3"]


async def test_a_redis_that_is_away_is_named_without_its_password(redis_hosts):
    archive = redis_hosts.archive_at("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(
        StorageError, match=r"redis://:\*\*\*@127\.0\.0\.1:1/0: it cannot be reached"
    ) as caught:
        await archive.figures(["svc_1"])
    assert "secret" not in str(caught.value)
