"""What a manager does with a journal that is an SQLite file: what it erases is gone from the disk, too."""

import os
from contextlib import closing

import pytest

from agentmgr.errors import StorageError
from agentmgr.journal import copies, schema, sqlite_archive
from agentmgr.journal.journal import Accepted, Asked, Kept, Question, TurnEnded, TurnRecord

SECRET = "a secret that nobody is to find again"


def turn(number=1, at=2.0):
    return TurnRecord(number, f"turn_{number}", '{"content":"hello"}', at)


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
