"""Whatever happens to the file, sessions go on, and are in it again once it can be written.

Real files; a small file system in memory for a full disk, where the system lets us mount one.
"""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, contextmanager

import pytest
import trio

from agentmgr.journal import schema, sqlite_archive
from agentmgr.journal.journal import Accepted, Asked, Question, TurnRecord, Unreachable

TURN = TurnRecord(1, "turn_1", '{"content":"hello"}', 2.0)


async def until(condition):
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - a journal does not announce it
            await trio.sleep(0.01)


async def degraded(journal, copy):
    """Says something, which is not kept and reaches the client all the same."""
    copy.say("not kept")
    await copy.held.settled()
    assert journal.degraded is not None
    assert copy.visible == copy.last_seq


async def well_again(journal, copy):
    """And nothing is missing in the file."""
    await until(lambda: journal.degraded is None)
    copy.say("kept again")
    await copy.held.settled()
    assert copy.visible == copy.last_seq
    found = await copy.held.frames(1, 2**31, max_bytes=2**24)
    assert [frame.seq for frame in found] == list(range(1, copy.last_seq + 1))
    assert [frame.line for frame in found] == [frame.line for frame in copy.frames]


@contextmanager
def locked(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_locked_for_longer_than_is_waited(hosts):
    async with hosts.one() as (journal, copy):
        copy.held.write(Accepted(TURN))
        copy.say("one")
        await copy.held.settled()
        with locked(hosts.path):
            await degraded(journal, copy)
            assert "locked" in journal.degraded
            with pytest.raises(Unreachable):
                await journal.take_up("ses_1")
            new = await hosts.create(journal, "ses_2", name="new")
            new.say("in memory")
            assert new.visible == 1
        await well_again(journal, copy)
        assert sqlite_archive.session(hosts.path, "ses_2")[0].name == "new"


async def test_locked_for_less_than_is_waited(hosts):
    async with hosts.one() as (journal, copy):
        copy.say("one")
        await copy.held.settled()
        with locked(hosts.path):
            copy.say("two")
            await trio.sleep(0.1)
            assert (copy.visible, journal.degraded) == (1, None)
        await copy.held.settled()
        assert (copy.visible, journal.degraded) == (2, None)


async def test_removed(hosts):
    async with hosts.one() as (journal, copy):
        copy.say("one", "two")
        await copy.held.settled()
        shutil.rmtree(hosts.path.parent)
        await degraded(journal, copy)
        await well_again(journal, copy)
        async with hosts.open("inst_2") as other:
            copy.say("three")
            await copy.held.settled()
            assert (await other.unfinished(), copy.is_lost) == ([], False)


async def test_a_pipe_in_the_place_of_a_lock_holds_up_no_one(hosts):
    hosts.path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(hosts.path.with_name("inst_9%3A0.lock"))
    with trio.fail_after(60):
        async with hosts.one() as (journal, copy):
            copy.say("one")
            await copy.held.settled()
            assert journal.degraded is None


async def test_replaced_by_an_older_copy(hosts):
    async with hosts.one() as (journal, copy):
        copy.say("one", "two")
        await copy.held.settled()
        older = hosts.path.with_name("older")
        with closing(schema.connect(hosts.path)) as db, closing(sqlite3.connect(older)) as copied:
            db.backup(copied)
        copy.say("three")
        copy.held.write(Accepted(TURN), Asked(Question("ask_1", "{}", 3.0)))
        copy.turns[1], copy.questions["ask_1"] = TURN, Question("ask_1", "{}", 3.0)
        await copy.held.settled()
        os.replace(older, hosts.path)
        await degraded(journal, copy)
        await well_again(journal, copy)
        _, found = sqlite_archive.session(hosts.path, "ses_1")
        assert [turn.step_id for turn in found.turns] == ["turn_1"]
        assert [question.step_id for question in found.questions] == ["ask_1"]


async def test_two_hosts_whose_file_is_removed_agree_on_the_new_one(hosts):
    async with hosts.one() as (journal, copy), hosts.open("inst_2") as other:
        second = await hosts.create(other, "ses_2")
        for one in (copy, second):
            one.say("one")
            await one.held.settled()
        os.unlink(hosts.path)
        await degraded(journal, copy)
        await well_again(journal, copy)
        await degraded(other, second)
        await well_again(other, second)
        await well_again(journal, copy)
        assert sqlite_archive.figures(hosts.path).sessions == 2


def set_aside(hosts, kind):
    (kept,) = hosts.path.parent.glob(f"{hosts.path.name}.{kind}-*Z")
    return kept


@pytest.mark.parametrize("content", [b"not a database " * 500, b"\0" * 8192, b"x"])
async def test_damaged_when_it_is_opened(hosts, content, caplog):
    hosts.path.parent.mkdir()
    hosts.path.write_bytes(content)
    async with hosts.one() as (journal, copy):
        await well_again(journal, copy)
        assert set_aside(hosts, "corrupt").read_bytes() == content
        assert str(set_aside(hosts, "corrupt")) in caplog.text


async def test_damaged_while_it_is_used(hosts, caplog):
    async with hosts.one() as (journal, copy), hosts.open("inst_2") as other:
        second = await hosts.create(other, "ses_2")
        for one in (copy, second):
            one.say("one", "two")
            await one.held.settled()
        with closing(schema.connect(hosts.path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with hosts.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.write(os.urandom(size))
        await degraded(journal, copy)
        await well_again(journal, copy)
        await degraded(other, second)
        await well_again(other, second)
        assert set_aside(hosts, "corrupt").stat().st_size >= size


async def test_of_a_newer_version(hosts, caplog):
    async with hosts.one() as (_, copy):
        copy.say("one")
    with closing(schema.connect(hosts.path)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    async with hosts.open("inst_1") as journal:
        assert await journal.take_up("ses_1") is None
        await well_again(journal, await hosts.create(journal, "ses_2"))
    assert "newer agentmgr" in caplog.text
    with closing(sqlite3.connect(set_aside(hosts, "newer"))) as db:
        assert db.execute("SELECT session_id FROM sessions").fetchall() == [("ses_1",)]


async def test_a_directory_that_cannot_be_made_until_later(hosts):
    hosts.path.parent.write_text("a file where the directory is to be")
    async with hosts.one() as (journal, copy):
        await degraded(journal, copy)
        with pytest.raises(Unreachable):
            await journal.unfinished()
        hosts.path.parent.unlink()
        await well_again(journal, copy)


@pytest.fixture
def small_disk(tmp_path):
    """1 MiB of room."""
    (tmp_path / "sessions").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(tmp_path / "sessions")]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    yield tmp_path / "sessions"
    subprocess.run(["umount", "-l", str(tmp_path / "sessions")], check=True)


async def test_a_full_disk(small_disk, hosts):
    async with hosts.one() as (journal, copy):
        copy.say("one")
        await copy.held.settled()
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        copy.say("x" * 50_000)
        await degraded(journal, copy)
        filler.unlink()
        await well_again(journal, copy)


async def test_read_only(small_disk, hosts):
    async with hosts.one() as (_, copy):
        copy.say("one")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    async with hosts.one() as (journal, copy):
        await degraded(journal, copy)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        await until(lambda: journal.degraded is None)
        assert copy.is_lost is False


async def test_what_cannot_be_written_keeps_one_session_in_memory_and_no_other(hosts, caplog):
    async with hosts.one() as (journal, copy):
        other = await hosts.create(journal, "ses_2")
        other.say("one")
        bad = TurnRecord(1, "turn_1", "half of a character: \ud800", 2.0)
        copy.turns[1] = bad
        copy.held.write(Accepted(bad))
        copy.say("two")
        await copy.held.settled()
        await well_again(journal, other)
        copy.say("three")
        assert copy.visible == copy.last_seq
        assert "cannot be kept" in caplog.text
