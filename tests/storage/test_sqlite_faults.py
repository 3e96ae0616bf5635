"""What survives when things go wrong under a store that is at work.

* killed at any moment: every write that returned is there, whole, and so is nothing half done;
* another program holds the lock, or the disk is full: users' writes say so, recorded facts wait, supervision
  goes on, and all is well again by itself afterwards;
* a cancelled wait leaves a write done or not done.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from attrs import evolve

from agentmgr.errors import InvalidRequest, StorageError
from agentmgr.models import Event, Token, TokenPolicy, utc_now
from agentmgr.storage import HistoryLimits, SqliteStore, open_store, schema, sqlite, tables
from agentmgr.storage.store import TOKENS

WRITER = """
import os, sys, trio
from agentmgr.models import Event, ServiceConfig, ServiceSpec
from agentmgr.storage import open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        for number in range(100_000):
            spec = ServiceSpec(name=f"s{number}", config=ServiceConfig(agent_factory_path="a.py"))
            await store.add_service(spec)
            os.write(1, f"added {number}\\n".encode())
            store.record(Event("tick", service_id=spec.service_id))
            await store.update_service(spec.changed(description="updated"))
            os.write(1, f"updated {number}\\n".encode())
            if number % 3 == 0:
                await store.delete_service(spec.service_id)
                os.write(1, f"deleted {number}\\n".encode())

trio.run(main)
"""

CREATOR = """
import os, sys, trio
from pathlib import Path
from agentmgr.storage import open_store

async def main():
    for number in range(100_000):
        os.write(1, f"{number}\\n".encode())
        async with open_store(Path(sys.argv[1]) / f"{number}.db"):
            pass

trio.run(main)
"""


async def output_until_killed(script: str, argument: Path, delay_s: float) -> list[str]:
    """Runs a Python script, kills it `delay_s` after its first line, and returns its complete lines."""
    command = [sys.executable, "-c", script, str(argument)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    async with process.stdout as output:
        text = await output.receive_some()
        await trio.sleep(delay_s)
        process.kill()
        async for chunk in output:
            text += chunk
    assert await process.wait() == -signal.SIGKILL
    return text.decode().splitlines()


@pytest.mark.parametrize("seed", range(4))
async def test_a_killed_writer_loses_nothing_that_returned(seed, tmp_path):
    path = tmp_path / "a.db"
    lines = await output_until_killed(WRITER, path, random.Random(seed).uniform(0, 0.15))
    done: dict[str, str] = {}
    for line in lines:
        what, number = line.split()
        done[f"s{number}"] = what
    async with open_store(path) as store:
        found = {spec.name: spec for spec in (await store.load()).services}
    *settled, last = done
    for name in settled:
        assert (name in found) == (done[name] != "deleted")
    assert all(found[name].description == "updated" for name in settled if name in found)
    if done[last] == "added":
        assert last in found
    elif done[last] == "deleted":
        assert last not in found
    # One more may have been under way, and is whole or not there.
    assert len(set(found) - set(done)) <= 1


@pytest.mark.parametrize("seed", range(3))
async def test_a_manager_killed_while_it_makes_the_database_is_followed_by_another(seed, tmp_path, make):
    lines = await output_until_killed(CREATOR, tmp_path, random.Random(seed).uniform(0, 0.1))
    path = tmp_path / f"{lines[-1]}.db"
    async with open_store(path, read_only=True) as store:
        await store.load()
    async with open_store(path) as store:
        await store.add_service(make.service())


@pytest.mark.parametrize("version", range(1, len(schema.migrations())))
async def test_a_database_with_an_older_schema_can_be_read_without_being_changed(
    version, tmp_path, make, monkeypatch
):
    """As after an upgrade, or when the first manager was killed between two migrations."""
    path = tmp_path / "a.db"
    with monkeypatch.context() as patch:
        older = schema.migrations()[:version]
        patch.setattr(schema, "migrations", lambda: older)
        with closing(schema.open_for_writing(path)) as db:
            tables.add(db, tables.SERVICES, "svc_1", make.service("old"))
    before = path.read_bytes()
    async with open_store(path, read_only=True) as store:
        assert [spec.name for spec in (await store.load()).services] == ["old"]
        assert await store.tokens() == ()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.db"]


@pytest.mark.parametrize(
    ("scopes", "policy"),
    [
        ([], TokenPolicy()),
        ([{"read"}], TokenPolicy(api=True)),
        ([{"read"}, {"connect:x", "read"}], TokenPolicy(api=True, gateway=True)),
        ([{"connect"}], TokenPolicy(api=True, gateway=True)),
        ([{"admin"}], TokenPolicy(api=True)),
    ],
)
async def test_a_database_from_before_the_token_policy_asks_for_tokens_as_it_did(
    scopes, policy, tmp_path, monkeypatch
):
    path = tmp_path / "a.db"
    with monkeypatch.context() as patch:
        older = schema.migrations()[:4]
        patch.setattr(schema, "migrations", lambda: older)
        with closing(schema.open_for_writing(path)) as db:
            for number, of_one in enumerate(scopes):
                tables.add(db, TOKENS, f"tok_{number}", Token(f"t{number}", of_one, str(number)))
    async with open_store(path, read_only=True) as store:
        assert await store.token_policy() == policy
    async with open_store(path) as store:
        assert await store.token_policy() == policy


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_short_lock_is_waited_for(tmp_path, make):
    path = tmp_path / "a.db"
    async with open_store(path) as store, trio.open_nursery() as nursery:
        with locked_by_another(path):
            nursery.start_soon(store.add_service, make.service())
            await trio.testing.wait_all_tasks_blocked()
            await store.load()  # reading goes on
            assert (await store.load()).services == ()
    async with open_store(path, read_only=True) as store:
        assert len((await store.load()).services) == 1


async def test_a_long_lock_fails_the_users_write_in_plain_words(tmp_path, make):
    path = tmp_path / "a.db"
    async with open_store(path, lock_patience_s=0.05) as store:
        with locked_by_another(path):
            with pytest.raises(StorageError, match="locked by another program") as caught:
                await store.add_service(make.service())
            assert type(caught.value) is StorageError
        await store.add_service(make.service())


async def test_a_cancelled_wait_for_the_lock_ends_soon_and_writes_nothing(tmp_path, make):
    path = tmp_path / "a.db"
    async with open_store(path, lock_patience_s=600) as store:
        with locked_by_another(path), trio.move_on_after(0.01) as scope:
            await store.add_service(make.service())
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 60
        assert (await store.load()).services == ()
        await store.add_service(make.service())


async def test_a_cancelled_write_is_whole_or_not_there(tmp_path, make):
    names = [f"s{number}" for number in range(50)]
    returned = []
    async with open_store(tmp_path / "a.db") as store:
        for number, name in enumerate(names):
            with trio.move_on_after(number * 0.00005):
                await store.add_service(make.service(name))
                returned.append(name)
        found = [spec.name for spec in (await store.load()).services]
        assert set(returned) <= set(found)
        await store.add_service(make.service("afterwards"))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Nothing tells when a background write has failed or succeeded, so this looks again and again."""
    with trio.fail_after(20):
        while not await condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def until_degraded(store: SqliteStore, expected: bool) -> None:
    async def as_expected() -> bool:
        return (store.degraded is not None) == expected

    await until(as_expected)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sqlite, "RETRY_S", 0.02)
    monkeypatch.setattr(sqlite, "BATCH_INTERVAL_S", 0.01)


async def test_facts_wait_while_the_database_is_locked(quick, tmp_path):
    path = tmp_path / "a.db"
    async with open_store(path, lock_patience_s=0.01) as store:
        with locked_by_another(path):
            first = store.record(Event("one"))
            await until_degraded(store, True)
            assert "locked by another program" in store.degraded
            second = store.record(Event("two"))
            assert await store.events() == ()
        await until_degraded(store, False)
        assert await store.events() == (first, second)
        assert store.dropped == 0


async def test_a_full_disk_is_survived(quick, tmp_path, make):
    async with open_store(tmp_path / "a.db") as store:
        store._db.execute("PRAGMA max_page_count = 1")  # as small as it is now
        returned = []
        with pytest.raises(StorageError, match="the disk is full: make room"):
            for number in range(100):
                await store.add_service(make.service(f"s{number}"))
                returned.append(f"s{number}")
        assert [spec.name for spec in (await store.load()).services] == returned
        facts = [store.record(Event("tick", detail={"text": "x" * 1000})) for _ in range(50)]
        await until_degraded(store, True)
        assert "disk is full" in store.degraded
        store._db.execute("PRAGMA max_page_count = 100000")
        await until_degraded(store, False)
        assert await store.events() == tuple(facts)
        await store.add_service(make.service("room-again"))


async def test_more_facts_than_can_wait_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "QUEUED_FACTS", 10)
    async with open_store(tmp_path / "a.db") as store:
        facts = [store.record(Event("tick")) for _ in range(15)]
        assert store.dropped == 5
        assert await store.events() == tuple(facts[:10])


async def test_a_fact_that_cannot_be_kept_does_not_hold_up_the_others(tmp_path, make, caplog):
    async with open_store(tmp_path / "a.db") as store:
        service = make.service()
        await store.add_service(service)
        store.record(Event("half a character", detail={"text": "\ud800"}))
        store.record(make.check(service.service_id, latency_s=float("nan")))
        good = store.record(Event("fine"))
        assert await store.events() == (good,)
        assert await store.health_history(service.service_id) == ()
        assert store.dropped == 2
        assert "cannot be kept" in caplog.text
        assert (await store.load()).totals == {}


async def test_no_memory_for_a_thread_is_survived(quick, tmp_path, monkeypatch):
    async with open_store(tmp_path / "a.db") as store:

        def refuse(*_, **__):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(trio.to_thread, "run_sync", refuse)
            event = store.record(Event("tick"))
            await until_degraded(store, True)
            with pytest.raises(StorageError, match="can't start new thread"):
                await store.load()
        await until_degraded(store, False)
        assert await store.events() == (event,)


async def test_every_write_is_synced_to_the_disk(tmp_path):
    async with open_store(tmp_path / "a.db") as store:
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA foreign_keys").fetchone() == (1,)


async def test_text_that_no_database_takes_is_the_callers_mistake(tmp_path, make):
    spec = make.service()
    odd = evolve(spec, config=evolve(spec.config, agent_factory_path="\udcff.py"))
    async with open_store(tmp_path / "a.db") as store:
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            await store.add_service(odd)
        assert (await store.load()).services == ()


async def test_facts_are_written_without_being_asked_for(quick, tmp_path):
    path = tmp_path / "a.db"
    async with open_store(path) as store, open_store(path, read_only=True) as onlooker:
        store.record(Event("tick"))

        async def there() -> bool:
            return len(await onlooker.events()) == 1

        await until(there)


class Steps(trio.abc.Instrument):
    number = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += 1


async def test_with_nothing_to_write_it_sleeps(quick, tmp_path):
    async with open_store(tmp_path / "a.db") as store:
        store.record(Event("tick"))
        await store.flush()
        with trio.fail_after(20):
            await trio.testing.wait_all_tasks_blocked(0.05)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(0.3)
        trio.lowlevel.remove_instrument(steps)
        assert steps.number < 5


async def test_what_was_recorded_is_written_at_the_end_also_when_cancelled(tmp_path):
    path = tmp_path / "a.db"
    with trio.CancelScope() as scope:
        async with open_store(path) as store:
            event = store.record(Event("last words"))
            scope.cancel()
            await trio.sleep_forever()
    async with open_store(path) as store:
        assert await store.events() == (event,)
        assert store.record(Event("tick", event.at - timedelta(days=1))).event_id > event.event_id


async def test_an_error_inside_comes_out_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with open_store(tmp_path / "a.db"):
            raise ZeroDivisionError


async def test_history_that_is_too_old_goes(tmp_path, make):
    limits = HistoryLimits(max_age_s=3600)
    async with open_store(tmp_path / "a.db", limits=limits) as store:
        service = make.service()
        await store.add_service(service)
        now, old = utc_now(), utc_now() - timedelta(hours=2)
        for at in (old, now):
            second = (at - make.noon).total_seconds()
            store.record(make.check(service.service_id, second))
            store.record(Event("tick", at))
        assert [check.checked_at for check in await store.health_history(service.service_id)] == [now]
        assert [event.at for event in await store.events()] == [now]


async def test_slow_work_elsewhere_does_not_hold_up_the_store(tmp_path, make):
    """Worker threads are shared by the process; the store's limiter is its own."""
    limiter = trio.to_thread.current_default_thread_limiter()
    async with open_store(tmp_path / "a.db") as store:
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        with trio.fail_after(20):
            await store.add_service(make.service())


async def test_the_files_beside_are_closed_to_others(tmp_path):
    async with open_store(tmp_path / "a.db"):
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}
    assert os.listdir(tmp_path) == ["a.db"]
