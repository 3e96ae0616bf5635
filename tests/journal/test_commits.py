"""A few events are committed at once, in the host's own thread, which waits for no lock and no disk there."""

import sqlite3
import time
from contextlib import closing

import pytest
import trio

from agentmgr.journal import schema, sqlite, writing


@pytest.fixture
def threads(monkeypatch):
    """What was done in one, up to now."""
    real, done = trio.to_thread.run_sync, []

    async def run_sync(work, **options):
        done.append(work)
        return await real(work, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return done


async def test_events_need_no_thread(hosts, threads):
    async with hosts.one() as (journal, copy):
        other = await hosts.create(journal, "ses_2")
        for one in (copy, other):
            one.say("one")  # with its session: that is no small thing
            await one.held.settled()
        threads.clear()
        for _ in range(50):
            copy.say("two", "three")
            other.say("two")
            await copy.held.settled()
            assert (copy.visible, other.visible) == (copy.last_seq, other.last_seq)
        assert threads == []
        with closing(sqlite3.connect(hosts.path)) as db:
            assert db.execute("SELECT sum(last_seq - first_seq + 1) FROM frames").fetchone() == (152,)


async def test_more_sessions_than_one_statement_takes_are_one_transaction(hosts, threads):
    async with hosts.open("inst_1") as journal:
        copies = [await hosts.create(journal, f"ses_{n}") for n in range(writing.ROWS_AT_ONCE + 2)]
        for text in ("one", "two"):
            threads.clear()
            for copy in copies:
                copy.say(text)
            await copies[0].held.settled()
            assert {copy.visible for copy in copies} == {copies[0].last_seq}
        assert threads == []


async def test_many_bytes_are_left_to_the_thread(hosts, threads):
    async with hosts.one() as (_, copy):
        copy.say("one")
        await copy.held.settled()
        threads.clear()
        copy.say("x" * sqlite.HERE_BYTES, "y")
        await copy.held.settled()
        assert len(threads) == 1


async def test_after_a_slow_commit_the_thread_does_them_for_a_while(hosts, threads, monkeypatch):
    monkeypatch.setattr(sqlite, "AWAY_S", 0.5)
    async with hosts.one() as (_, copy):
        copy.say("one")
        await copy.held.settled()
        monkeypatch.setattr(sqlite, "SLOW_S", 0.0)
        copy.say("two")
        await copy.held.settled()
        threads.clear()
        copy.say("three")
        await copy.held.settled()
        assert (len(threads), copy.visible) == (1, 3)
        await trio.sleep(0.5)
        copy.say("four")
        await copy.held.settled()
        assert (len(threads), copy.visible) == (1, 4)


async def test_another_processes_transaction_holds_up_events_and_not_the_host(hosts, monkeypatch):
    monkeypatch.setattr(schema, "LOCK_PIECE_MS", 10_000)  # what a connection that waits would wait
    async with hosts.one() as (journal, copy):
        copy.say("one")
        await copy.held.settled()
        with closing(sqlite3.connect(hosts.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            copy.say("two")
            await trio.sleep(0.1)
            assert (copy.visible, journal.degraded) == (1, None)
            assert time.monotonic() - began < 5
        await copy.held.settled()
        assert (copy.visible, journal.degraded) == (2, None)


async def test_the_log_of_commits_stays_bounded_and_none_of_them_copies_it(hosts, monkeypatch):
    monkeypatch.setattr(sqlite, "LOG_BYTES", 100_000)
    monkeypatch.setattr(schema, "LOG_PAGES", 100)
    log = hosts.path.with_name(f"{hosts.path.name}-wal")
    async with hosts.one() as (_, copy):
        for _ in range(2000):
            copy.say("x" * 200)
            await copy.held.settled()
            if copy.last_seq % 50 == 0:
                await trio.sleep(0.001)  # so that the thread gets on
        # A commit is two pages or more.
        assert log.stat().st_size < 4 * 2**20
