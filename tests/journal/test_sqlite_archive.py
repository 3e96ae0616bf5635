"""What a manager sees of the sessions while hosts run or not, and what is erased is gone."""

import os
from contextlib import closing

import pytest

from agentmgr.errors import InvalidRequest, StorageError
from agentmgr.journal import copies, schema, sqlite_archive
from agentmgr.journal.archive import Pruned, SessionState
from agentmgr.journal.journal import Accepted, Asked, Kept, Question, SessionEnded, TurnEnded, TurnRecord

SECRET = "a secret that nobody is to find again"


def turn(number=1, at=2.0):
    return TurnRecord(number, f"turn_{number}", '{"content":"hello"}', at)


async def stocked(hosts, journal):
    """A session in each state, the last used first: ses_5 … ses_1."""
    for number in range(1, 6):
        owner, name = ("ann", "Plans") if number == 2 else (None, None)
        copy = await hosts.create(journal, f"ses_{number}", at=float(number), owner=owner, name=name)
        copy.held.write(Kept(state="{}"))
        if number == 2:
            copy.held.write(Accepted(turn(at=2.0)))
            copy.say("one", "two", turn=1)
        if number == 3:
            copy.held.write(Accepted(turn(at=3.0)), Asked(Question("ask_1", '{"tool":"x"}', 3.5)))
        if number == 5:
            copy.held.write(SessionEnded("ended", 5.0))
        await copy.held.settled()


async def test_sessions_are_listed_the_last_used_first(hosts):
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
        found = sqlite_archive.sessions(hosts.path).items
        assert [(one.session_id, one.state, one.instance_id) for one in found] == [
            ("ses_5", SessionState.ENDED, None),
            ("ses_4", SessionState.IDLE, "inst_1"),
            ("ses_3", SessionState.ASKING, "inst_1"),
            ("ses_2", SessionState.RUNNING, "inst_1"),
            ("ses_1", SessionState.IDLE, "inst_1"),
        ]
        first = sqlite_archive.sessions(hosts.path, limit=3)
        assert [one.session_id for one in first.items] == ["ses_5", "ses_4", "ses_3"]
        rest = sqlite_archive.sessions(hosts.path, limit=3, cursor=first.next_cursor)
        assert ([one.session_id for one in rest.items], rest.next_cursor) == (["ses_2", "ses_1"], None)
    states = [one.state for one in sqlite_archive.sessions(hosts.path).items]
    assert states[1] == states[4] == SessionState.HIBERNATED


async def test_sessions_are_found_by_state_owner_and_text(hosts):
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
        for wanted, found in (
            ({"state": SessionState.ASKING}, ["ses_3"]),
            ({"state": SessionState.RUNNING}, ["ses_2"]),
            ({"state": SessionState.IDLE}, ["ses_4", "ses_1"]),
            ({"owner": "ann"}, ["ses_2"]),
            ({"text": "plan"}, ["ses_2"]),
            ({"text": "s_4"}, ["ses_4"]),
            ({"text": "plan", "state": SessionState.ENDED}, []),
        ):
            assert [one.session_id for one in sqlite_archive.sessions(hosts.path, **wanted).items] == found
    for cursor in ("nonsense", "1.0:9223372036854775808", "1.0:-1"):
        with pytest.raises(InvalidRequest):
            sqlite_archive.sessions(hosts.path, cursor=cursor)


async def test_one_session_its_events_and_all_open_questions(hosts):
    async with hosts.open("inst_1") as journal:
        await stocked(hosts, journal)
    summary, whole = sqlite_archive.session(hosts.path, "ses_2")
    assert (summary.name, summary.turns, [one.step_id for one in whole.turns]) == ("Plans", 1, ["turn_1"])
    assert [(one.seq, one.step_id, one.line) for one in sqlite_archive.events(hosts.path, "ses_2", 1)] == [
        (2, "turn_1", b"two")
    ]
    (question,) = sqlite_archive.questions(hosts.path)
    assert (question.session_id, question.question.step_id) == ("ses_3", "ask_1")
    assert sqlite_archive.session(hosts.path, "ses_9") is None
    assert sqlite_archive.events(hosts.path, "ses_2", 2**63 - 1) == []
    assert sqlite_archive.events(hosts.path, "ses_9") is None


def test_an_absent_journal_has_no_sessions_and_is_not_made(hosts):
    assert list(sqlite_archive.sessions(hosts.path).items) == list(sqlite_archive.questions(hosts.path)) == []
    assert not sqlite_archive.erase(hosts.path, "ses_1")
    assert sqlite_archive.figures(hosts.path).sessions == 0
    assert sqlite_archive.prune(hosts.path, retention_s=1).unused == ()
    assert not hosts.path.exists()


@pytest.mark.parametrize("held", [False, True])
async def test_what_is_erased_is_in_no_file_any_more(hosts, held):
    async with hosts.one() as (journal, copy):
        copy.held.write(Accepted(TurnRecord(1, "turn_1", f'{{"content":"{SECRET}"}}', 2.0)))
        copy.held.write(Kept(state=f'{{"a":"{SECRET}"}}', memory=SECRET * 1000))
        for _ in range(100):
            copy.say(SECRET * 10, turn=1)
            await copy.held.settled()
        copy.held.write(TurnEnded(1, "agent.final_answer", SECRET, 4.0))
        copy.held.write(Asked(Question("ask_1", SECRET, 3.5)))
        await copy.held.settled()
        if not held:
            await copy.held.release()
        other = await hosts.create(journal, "ses_2")
        other.say("stays")
        await other.held.settled()
        assert sqlite_archive.erase(hosts.path, "ses_1")
        files = [file for file in hosts.path.parent.iterdir() if file.is_file()]
        assert not [file for file in files if SECRET.encode() in file.read_bytes()]
        assert await journal.take_up("ses_1") is None
        if held:
            copy.say("more")
            await copy.held.settled()
            assert copy.is_lost
        assert [one.session_id for one in sqlite_archive.sessions(hosts.path).items] == ["ses_2"]


async def test_for_room_the_longest_unused_go_first_and_those_that_a_host_holds_last(hosts):
    async with hosts.open("inst_1") as journal:
        for number in range(100):
            copy = await hosts.create(journal, f"ses_{number}", at=float(number))
            copy.say("x" * 10_000)
            if number >= 10:
                copy.held.write(Accepted(turn(at=float(number))), TurnEnded(1, "agent.timeout", None, number))
                await copy.held.settled()
        await copy.held.settled()
        give_up(hosts.path, from_number=10)
        size = sqlite_archive.figures(hosts.path).bytes
        pruned = sqlite_archive.prune(hosts.path, max_bytes=size // 2).for_room
        assert 45 < len(pruned) < 60
        assert list(pruned) == [f"ses_{number}" for number in range(10, 10 + len(pruned))]
        assert sqlite_archive.figures(hosts.path).bytes <= size // 2
        assert os.stat(hosts.path).st_size < size * 0.6
        assert len(sqlite_archive.prune(hosts.path, max_bytes=1).for_room) == 100 - len(pruned)


def give_up(path, from_number):
    with closing(schema.connect(path)) as db:
        db.execute("UPDATE sessions SET holder = NULL WHERE last_used_at >= ?", (from_number,))


async def test_sessions_that_were_not_used_for_long_are_pruned_unless_a_host_holds_them(hosts):
    async with hosts.open("inst_1") as journal:
        for number in range(1, 4):
            copy = await hosts.create(journal, f"ses_{number}", at=float(number))
            copy.say("one")
            await copy.held.settled()
        assert sqlite_archive.prune(hosts.path, retention_s=10, now=12.5) == Pruned()
    assert sqlite_archive.prune(hosts.path, retention_s=10, now=12.5) == Pruned(unused=("ses_1", "ses_2"))
    assert [one.session_id for one in sqlite_archive.sessions(hosts.path).items] == ["ses_3"]


async def test_a_journal_that_cannot_be_read_says_what_to_do(hosts):
    async with hosts.one() as (_, copy):
        copy.say("one")
    hosts.path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        sqlite_archive.sessions(hosts.path)


async def test_a_journal_that_is_removed_leaves_nothing_that_was_set_aside_of_it(hosts):
    path = hosts.path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * 4096)
    async with hosts.open("inst_1"):
        pass
    assert [it for it in path.parent.iterdir() if ".corrupt" in it.name]
    copies.remove(path)
    assert not [it for it in path.parent.iterdir() if it.name.startswith(path.name)]
