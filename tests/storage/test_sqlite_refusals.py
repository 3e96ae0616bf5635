"""A file that cannot be used is refused in a sentence that says why and what to do, and is left as it was."""

import json
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from agentmgr.errors import DatabaseDamaged, DatabaseTooNew, DatabaseUnusable, StorageError
from agentmgr.models import Event
from agentmgr.storage import HistoryLimits, Snapshot, open_store, schema


async def make_database(path: Path, make, services: int = 1) -> None:
    async with open_store(path) as store:
        for number in range(services):
            await store.add_service(make.service(f"service{number}"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


def damage_a_page(path: Path) -> None:
    overwrite(path, 4096 * 3, b"\xa5" * 4096)


REFUSED: dict[str, tuple[Callable[[Path], object], type[StorageError], str]] = {
    "text": (lambda p: p.write_text("name = 'x'\n" * 100), DatabaseDamaged, "agentmgr restore"),
    "one byte": (lambda p: p.write_bytes(b"x"), DatabaseDamaged, "agentmgr backup"),
    "damaged header": (lambda p: overwrite(p, 0, b"nonsense"), DatabaseDamaged, "agentmgr restore"),
    "damaged page size": (lambda p: overwrite(p, 16, b"\x00\x03"), DatabaseDamaged, "agentmgr restore"),
    "damaged page": (damage_a_page, DatabaseDamaged, "agentmgr restore"),
    "cut off": (lambda p: os.truncate(p, 4096 * 5), DatabaseDamaged, "agentmgr restore"),
    "another program's": (lambda p: execute(p, "PRAGMA application_id = 7"), DatabaseDamaged, "not one of"),
    "newer": (lambda p: execute(p, "PRAGMA user_version = 999"), DatabaseTooNew, "upgrade agentmgr"),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_file_is_refused_and_untouched(case, read_only, tmp_path, make):
    spoil, error, words = REFUSED[case]
    path = tmp_path / "a.db"
    await make_database(path, make, services=20)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(error, match=words) as caught:
        async with open_store(path, read_only=read_only):
            pass
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


async def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "a.db"
    execute(path, "CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(DatabaseDamaged, match="not one of agentmgr's"):
        async with open_store(path):
            pass
    assert path.read_bytes() == before


async def test_a_damaged_file_is_not_merged_with_what_a_killed_manager_left(tmp_path, make):
    path, copy = tmp_path / "a.db", tmp_path / "copy" / "a.db"
    copy.parent.mkdir()
    await make_database(path, make, services=20)
    async with open_store(path) as store:
        await store.add_service(make.service("last"))
        for name in ("a.db", "a.db-wal"):
            (copy.parent / name).write_bytes((tmp_path / name).read_bytes())
    async with open_store(copy, read_only=True) as store:
        assert len((await store.load()).services) == 21
    os.truncate(copy, 4096 * 5)
    before = [copy.with_name(name).read_bytes() for name in ("a.db", "a.db-wal")]
    with pytest.raises(DatabaseDamaged):
        async with open_store(copy):
            pass
    assert [copy.with_name(name).read_bytes() for name in ("a.db", "a.db-wal")] == before


async def test_a_directory_is_refused(tmp_path):
    for read_only in (False, True):
        with pytest.raises(DatabaseUnusable, match="is a directory"):
            async with open_store(tmp_path, read_only=read_only):
                pass


async def test_a_missing_directory_is_refused_and_not_made(tmp_path):
    with pytest.raises(DatabaseUnusable, match=r"directory .*nowhere does not exist"):
        async with open_store(tmp_path / "nowhere" / "a.db"):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_something_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.db")
    with pytest.raises(DatabaseUnusable, match="not a regular file"):
        async with open_store(tmp_path / "a.db"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without rights")
@pytest.mark.parametrize("existing", [True, False])
async def test_a_path_that_cannot_be_written_is_refused(existing, tmp_path, make):
    path = tmp_path / "a.db"
    if existing:
        await make_database(path, make)
        path.chmod(0o644)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        if not (mode := directory.stat().st_mode) & 0o001:
            directory.chmod(mode | 0o055)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    script = (
        "import os, sys, trio; from agentmgr.storage import open_store, schema\n"
        "schema.migrations(); os.setuid(65534)  # who may not even read the interpreter's own files\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]): pass\n"
        "trio.run(main)\n"
    )
    result = await trio.run_process(
        [sys.executable, "-c", script, str(path)], check=False, capture_stderr=True
    )
    last_line = result.stderr.decode().strip().splitlines()[-1]
    assert last_line.startswith("agentmgr.errors.DatabaseUnusable")
    assert str(path) in last_line
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


async def test_a_row_that_does_not_parse_is_named(tmp_path, make):
    path = tmp_path / "a.db"
    service = make.service()
    async with open_store(path) as store:
        await store.add_service(service)
    document = json.dumps({"name": "weather", "config": {"weight": "three"}})
    execute(path, f"UPDATE services SET document = '{document}'")
    for read_only in (False, True):
        async with open_store(path, read_only=read_only) as store:
            with pytest.raises(DatabaseDamaged, match=service.service_id) as caught:
                await store.load()
        assert "config.weight must be a whole number" in str(caught.value)
        assert "agentmgr restore" in str(caught.value)


async def test_an_empty_file_becomes_a_database_for_its_owner_only(tmp_path, make):
    path = tmp_path / "a.db"
    await make_database(path, make)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    empty = tmp_path / "empty.db"
    empty.touch()
    await make_database(empty, make)


async def test_reading_only_makes_nothing(tmp_path):
    async with open_store(tmp_path / "nowhere.db", read_only=True) as store:
        assert await store.load() == Snapshot()
        assert await store.events() == ()
        assert await store.health_history("svc_none") == ()
    assert list(tmp_path.iterdir()) == []


async def test_reading_only_leaves_nothing_beside_a_database_at_rest(tmp_path, make):
    path = tmp_path / "a.db"
    await make_database(path, make)
    before = path.read_bytes()
    async with open_store(path, read_only=True) as store:
        assert len((await store.load()).services) == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


async def test_reading_only_sees_what_a_running_manager_writes(tmp_path, make):
    path = tmp_path / "a.db"
    async with open_store(path) as store, open_store(path, read_only=True) as onlooker:
        for number in range(3):
            await store.add_service(make.service(f"service{number}"))
            assert len((await onlooker.load()).services) == number + 1


async def test_reading_only_refuses_to_write(tmp_path, make):
    path = tmp_path / "a.db"
    await make_database(path, make)
    async with open_store(path, read_only=True) as store:
        with pytest.raises(DatabaseUnusable, match="for reading only"):
            await store.add_service(make.service("another"))
        store.record(Event("tick"))
        assert store.dropped == 1


async def test_a_link_leads_to_the_same_database(tmp_path, make):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "a.db", tmp_path / "link.db"
    link.symlink_to(path)
    async with open_store(path) as store:
        await store.add_service(make.service())
        async with open_store(link, read_only=True) as onlooker:
            assert len((await onlooker.load()).services) == 1


async def test_odd_characters_in_the_path_are_fine(tmp_path, make):
    path = tmp_path / "a b?mode=memory&x#ü%20.db"
    await make_database(path, make)
    assert path.stat().st_size > 0


async def test_migrations_run_in_order_and_each_whole(tmp_path, make, monkeypatch):
    path = tmp_path / "a.db"
    await make_database(path, make)
    ours = schema.migrations()
    good, bad = (
        "CREATE TABLE extra (x INTEGER) STRICT;\n",
        "CREATE TABLE more (x INTEGER);\nCREATE nonsense;\n",
    )
    monkeypatch.setattr(schema, "migrations", lambda: (*ours, good, bad))
    with pytest.raises(StorageError):
        async with open_store(path):
            pass
    monkeypatch.setattr(schema, "migrations", lambda: (*ours, good))
    assert schema.inspect(path) == len(ours) + 1
    async with open_store(path) as store:
        assert len((await store.load()).services) == 1
    with closing(sqlite3.connect(path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    assert "extra" in tables
    assert "more" not in tables


async def test_no_query_reads_a_whole_table_for_a_part_of_it(tmp_path, make):
    statements: list[str] = []
    async with open_store(tmp_path / "a.db", limits=HistoryLimits(events=1)) as store:
        store._db.set_trace_callback(statements.append)
        service, rule = make.service(), make.rule()
        await store.add_service(service)
        await store.update_service(service.changed())
        await store.add_rule(rule)
        await store.put_instance(make.instance(service.service_id))
        for fact in (make.check(service.service_id), make.session_end(service.service_id), Event("tick")):
            store.record(fact)
        await store.health_history(service.service_id)
        await store.events()
        await store.delete_instance("inst_1")
        await store.delete_rule(rule.rule_id)
        await store.delete_service(service.service_id)
        store._db.set_trace_callback(None)
        queries = [s for s in statements if s.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")]
        assert len(queries) > 20
        for query in queries:
            plan = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}")]
            reads_all = any(step.startswith("SCAN") and "CONSTANT" not in step for step in plan)
            assert not reads_all or ("ORDER BY id" in query and "LIMIT" in query), (query, plan)
            assert not any("TEMP B-TREE" in step for step in plan), (query, plan)
