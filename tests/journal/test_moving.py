"""The sessions of a journal come into another one, while hosts write there, and however often it is tried."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from agentmgr.agent.session_ids import SessionIds
from agentmgr.core.affinity import named_place
from agentmgr.errors import StorageError
from agentmgr.journal import copies, moving, sqlite_archive
from agentmgr.journal.journal import Frame, SessionRecord
from agentmgr.journal.sqlite import open_journal
from agentmgr.testing.agents import bare_client, hosted


async def converse(path: Path, place: str, *, times: int = 1, name: str | None = None) -> list[str]:
    async def agent(message: Any, session: Any) -> str:
        session.state["n"] = session.state.get("n", 0) + 1
        if message == "may I?":
            await session.confirm("sure?")
        return f"{session.state['n']} ✓ {message}"

    ids = []
    async with (
        open_journal(path, place) as journal,
        hosted(agent, journal=journal, instance_id=place) as url,
    ):
        for number in range(times):
            async with bare_client(url) as client:
                if name is not None:
                    await client.say("user.create_session", name=name)
                    await client.until("agent.session_created")
                await client.ask(f"hello {number}")
                await client.ask("again")
                if number == 0:
                    await client.say("user.message", content="may I?")
                    await client.until("agent.user_confirm")
                assert client.session_id is not None
                ids.append(client.session_id)
    return ids


def content(path: Path, session_id: str) -> list[Any]:
    """All that is kept of a session, but its row's number, its holder and its epoch."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        (row,) = db.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchall()
        found = [{key: value for key, value in dict(row).items() if key not in ("id", "holder", "epoch")}]
        for table, order in (
            ("kept", "1"), ("turns", "number"), ("frames", "last_seq"), ("questions", "step_id")
        ):  # fmt: skip
            rows = db.execute(f"SELECT * FROM {table} WHERE session = ? ORDER BY {order}", (row["id"],))
            found.append(
                [{k: value for k, value in dict(each).items() if k not in ("id", "session")} for each in rows]
            )
    return found


async def test_all_of_a_session_comes_and_it_goes_on_there(tmp_path: Path) -> None:
    there, here, copy = tmp_path / "there.db", tmp_path / "here.db", tmp_path / "copy"
    ids = await converse(there, "ins_1", times=3)
    mine = await converse(here, "ins_2")
    before = {session_id: content(there, session_id) for session_id in ids}
    assert moving.copy(there, copy) == copy.stat().st_size > 0
    assert (moving.put_in(here, copy), moving.put_in(here, copy)) == (3, 0)
    assert {it: content(here, it) for it in ids} == before
    assert sqlite_archive.figures(here).sessions == 4
    assert {it.session_id for it in sqlite_archive.sessions(here).items} == {*ids, *mine}
    async with open_journal(here, "ins_3") as journal:
        held = await journal.take_up(ids[1])
        assert held is not None
        assert held.loaded.record.state == '{"n":2}'
        last = held.loaded.record.last_seq
        held.write(Frame(last + 1, 2, b'{"event":"agent.status","content":"more"}'))
        await held.settled()
        await held.release()
    assert moving.put_in(here, copy) == 0, "what is there, and has gone on, is not touched"
    assert content(here, ids[1])[3][-1]["last_seq"] == last + 1


async def test_hosts_there_write_on_meanwhile(tmp_path: Path) -> None:
    there, here, copy = tmp_path / "there.db", tmp_path / "here.db", tmp_path / "copy"
    line = b'{"event":"agent.partial_answer","content":"' + b"x" * 20_000 + b'"}'
    async with open_journal(there, "ins_1") as journal:
        for number in range(20):
            held = await journal.create(SessionRecord(f"ses_{number}", None, 1.0, 1.0))
            held.write(*(Frame(seq, 1, line) for seq in range(1, 51)))
            await held.settled()
    moving.copy(there, copy)
    async with open_journal(here, "ins_2") as journal:
        held = await journal.create(SessionRecord("ses_mine", None, 1.0, 1.0))
        written = 0
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                nonlocal written
                while True:
                    written += 1
                    held.write(Frame(written, 1, b'{"event":"agent.status","content":"x"}'))
                    await held.settled()

            nursery.start_soon(write)
            assert await trio.to_thread.run_sync(moving.put_in, here, copy) == 20
            nursery.cancel_scope.cancel()
        await held.settled()
        assert journal.degraded is None
        assert written > 5
    assert sqlite_archive.figures(here).sessions == 21
    assert content(here, "ses_mine")[3][-1]["last_seq"] == written


async def test_a_name_stays_with_the_session_that_has_it_there(tmp_path: Path) -> None:
    there, here, copy = tmp_path / "there.db", tmp_path / "here.db", tmp_path / "copy"
    (theirs,) = await converse(there, "ins_1", name="diary")
    (mine,) = await converse(here, "ins_2", name="diary")
    moving.copy(there, copy)
    assert moving.put_in(here, copy) == 1
    names = {it.session_id: it.name for it in sqlite_archive.sessions(here).items}
    assert names == {mine: "diary", theirs: None}
    other = tmp_path / "other.db"
    moving.put_in(other, copy)
    assert [it.name for it in sqlite_archive.sessions(other).items] == ["diary"]


async def test_what_cannot_be_read_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    there, here, copy = tmp_path / "there.db", tmp_path / "here.db", tmp_path / "copy"
    assert moving.copy(there, copy) == 0, "there is none"
    await converse(there, "ins_1")
    moving.copy(there, copy)
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=r"put into the journal|cannot be read"):
        moving.put_in(here, copy)
    assert not copy.exists(), "it is to be sent again"
    with pytest.raises(StorageError):
        moving.put_in(here, copy)
    assert sqlite_archive.figures(here).sessions == 0


def test_ids_name_the_generation_of_their_journal(tmp_path: Path) -> None:
    path = tmp_path / "svc_0123456789abcdef.db"
    assert moving.generation_of(path) == 0
    moving.begin_generation(path, 2)
    assert moving.generation_of(path) == 2
    for node_id in ("nod_b", ""):
        for generation in (0, 1, 12):
            new = SessionIds("ins_1", node_id, generation).new()
            assert SessionIds.may_be(new)
            assert named_place(new) == (node_id, generation)
            assert new.endswith(".ins_1")
    copies.remove(path)
    assert list(tmp_path.iterdir()) == []
