"""What is kept of a connection, so that another host can go on with it."""

import sqlite3
from contextlib import closing

import trio

from agentmgr.journal import sqlite_archive, writing
from agentmgr.journal.links import OUTDATED
from tests.proxy.conftest import eventually


class Link:
    def __init__(self):
        self.text, self.is_lost = "", False

    def record(self):
        return self.text

    def must_come_back(self):
        self.is_lost = True


async def write(held, copy, text):
    copy.text = text
    held.changed()
    with trio.fail_after(60):
        await held.settled()


async def test_it_is_committed_with_what_sessions_hand_over(any_hosts):
    async with any_hosts.one() as (journal, session):
        copy = Link()
        held = journal.keep_link("con_1", copy)
        assert held.is_settled
        session.say("one")
        held.changed()
        copy.text = "as it is when it is written"
        assert not held.is_settled
        await held.settled()
        assert session.visible == 1
        assert await journal.take_link("con_1") == "as it is when it is written"
        assert await journal.take_link("con_2") is None


async def test_one_host_goes_on_with_it(any_hosts):
    async with any_hosts.open("one") as first, any_hosts.open("two") as second:
        old, new = Link(), Link()
        before = first.keep_link("con_1", old)
        await write(before, old, "first")
        assert await second.take_link("con_1") == "first"
        await write(second.keep_link("con_1", new), new, "second")
        await write(before, old, "too late")
        assert (old.is_lost, new.is_lost) == (True, False)
        before.end(for_good=True)
        await before.settled()
        assert await second.take_link("con_1") == "second"


async def test_it_is_deleted_when_the_connection_is_over(any_hosts):
    async with any_hosts.open("one") as journal:
        copy = Link()
        held = journal.keep_link("con_1", copy)
        await write(held, copy, "here")
        held.end(for_good=True)
        await held.settled()
        assert await journal.take_link("con_1") is None


async def test_it_is_erased_with_a_session_that_it_reads_and_does_not_come_back(hosts):
    async with hosts.one() as (journal, session):
        session.say("one")
        copy = Link()
        held = journal.keep_link("con_1", copy)
        await write(held, copy, '{"ses_1": 1, "answer": "a secret"}')
        assert await trio.to_thread.run_sync(sqlite_archive.erase, hosts.path, "ses_1")
        await write(held, copy, '{"ses_1": 2, "answer": "a secret"}')
        assert copy.is_lost
        assert await journal.take_link("con_1") is None
        session.is_lost = True


async def test_it_is_written_anew_where_the_journal_could_not_be_written(any_hosts):
    async with any_hosts.one() as (journal, session):
        copy = Link()
        held = journal.keep_link("con_1", copy)
        await write(held, copy, "before")
        await any_hosts.lose()
        session.say("one")
        await write(held, copy, "meanwhile")
        await eventually(lambda: journal.degraded is None and held.is_settled)
        assert await journal.take_link("con_1") == "meanwhile"
        assert not copy.is_lost


async def test_after_the_journal_could_not_be_written_no_connection_goes_on_from_before(hosts, monkeypatch):
    """Nor where its sessions are written again, and it is not yet: its host may die just then."""
    then = []
    write_whole = writing.write_whole

    def look_and_write(*args):
        *_, db, _ = args
        then.extend(db.execute("SELECT id, state FROM links ORDER BY id"))
        return write_whole(*args)

    monkeypatch.setattr(writing, "write_whole", look_and_write)
    async with hosts.one() as (journal, session):
        copies = [Link() for _ in range(3)]
        goes_on, ends, new = (journal.keep_link(f"con_{n}", copy) for n, copy in enumerate(copies))
        for held, copy in ((goes_on, copies[0]), (ends, copies[1])):
            await write(held, copy, "before")
        with closing(sqlite3.connect(hosts.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            session.say("one")
            await write(goes_on, copies[0], "meanwhile")
            await write(new, copies[2], "new")
            ends.end(for_good=True)
            assert goes_on.is_outdated
        await eventually(lambda: journal.degraded is None and goes_on.is_settled and new.is_settled)
        assert then == [(f"con_{n}", OUTDATED) for n in range(3)]
        assert not goes_on.is_outdated
        found = [await journal.take_link(f"con_{n}") for n in range(3)]
        assert found == ["meanwhile", OUTDATED, "new"]


async def test_a_journal_without_links_gets_them(hosts):
    async with hosts.one():
        pass
    with closing(sqlite3.connect(hosts.path)) as db:
        db.execute("DROP TABLE links")
        db.commit()
    async with hosts.open("one") as journal:
        copy = Link()
        await write(journal.keep_link("con_1", copy), copy, "here")
        assert await journal.take_link("con_1") == "here"
