"""One manager per database, by a lock that dies with its process."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio

from agentmgr.errors import DatabaseUnusable, ManagerAlreadyRunning
from agentmgr.process.ownership import ManagerLock
from agentmgr.process.paths import RuntimePaths
from tests.conditions import read_to

OWNER = """
import os, sys, time
from agentmgr.process.ownership import ManagerLock
from agentmgr.process.paths import RuntimePaths

with ManagerLock(RuntimePaths.of(sys.argv[1])) as lock:
    {body}
"""
HOLD = "print(os.getpid(), flush=True); sys.stdin.read()"


@pytest.fixture
def paths(tmp_path) -> RuntimePaths:
    return RuntimePaths.of(tmp_path / "a.db")


class Owner:
    """Another process that runs `body` while it holds the lock; it has said a line when `started` returns."""

    def __init__(self, process: trio.Process, line: str) -> None:
        self.process = process
        self.line = line

    @classmethod
    async def started(cls, database: Path, body: str = HOLD) -> "Owner":
        command = [sys.executable, "-c", OWNER.format(body=body), str(database)]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return cls(process, (await read_to(process.stdout, b"\n")).decode().strip())

    async def aclose(self) -> None:
        await self.process.stdin.aclose()
        await self.process.stdout.aclose()
        await self.process.wait()


async def test_a_second_owner_is_refused_and_the_first_is_named(paths):
    owner = await Owner.started(paths.database)
    with pytest.raises(ManagerAlreadyRunning, match=rf"process {owner.process.pid} manages .*a\.db"):
        ManagerLock(paths).acquire()
    await owner.aclose()


async def test_the_lock_dies_with_its_process(paths):
    owner = await Owner.started(paths.database)
    owner.process.send_signal(signal.SIGKILL)
    await owner.process.wait()
    with ManagerLock(paths):
        assert paths.lock.read_text() == str(os.getpid())
    await owner.aclose()


async def test_children_do_not_keep_the_lock(paths):
    body = (
        "import subprocess; c = subprocess.Popen(['sleep', '60'], close_fds=False, start_new_session=True);"
        "print(c.pid, flush=True); sys.stdin.read()"
    )
    owner = await Owner.started(paths.database, body)
    try:
        owner.process.kill()
        await owner.process.wait()
        with ManagerLock(paths):
            os.kill(int(owner.line), 0)  # it lives, and holds nothing
    finally:
        os.kill(int(owner.line), signal.SIGKILL)
        await owner.aclose()


async def test_an_owner_that_goes_soon_is_waited_for(paths):
    owner = await Owner.started(paths.database)
    lock = ManagerLock(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.aclose)
        await lock.acquire_within(30)
    assert paths.lock.read_text() == str(os.getpid())
    lock.release()


async def test_patience_ends(paths, autojump_clock):
    with ManagerLock(paths):
        with pytest.raises(ManagerAlreadyRunning, match=f"process {os.getpid()} "):
            await ManagerLock(paths).acquire_within(5)
        assert trio.current_time() == pytest.approx(5, abs=0.1)


def test_what_is_released_can_be_taken_again(paths):
    lock = ManagerLock(paths)
    for _ in range(2):
        with lock:
            pass
        assert paths.lock.read_text() == ""
    lock.release()  # once more does no harm


def test_a_link_to_the_database_has_the_same_owner(paths, tmp_path):
    (tmp_path / "link.db").symlink_to(paths.database)
    with ManagerLock(paths), pytest.raises(ManagerAlreadyRunning):
        ManagerLock(RuntimePaths.of(tmp_path / "link.db")).acquire()


def test_an_impossible_place_is_refused(tmp_path):
    with pytest.raises(DatabaseUnusable, match="does not exist"):
        ManagerLock(RuntimePaths.of(tmp_path / "nowhere" / "a.db")).acquire()
    (tmp_path / "a.db.d").write_text("in the way")
    with pytest.raises(DatabaseUnusable, match=r"a\.db\.d cannot be made"):
        ManagerLock(RuntimePaths.of(tmp_path / "a.db")).acquire()


def test_a_full_disk_leaves_no_lock_behind(paths, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DatabaseUnusable, match="cannot be written: No space left"):
            ManagerLock(paths).acquire()
    with ManagerLock(paths):
        pass


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an flock meets SQLite's own locks")


@linux_only
async def test_a_deleted_lock_file_does_not_let_a_second_owner_in(paths):
    sqlite3.connect(paths.database).close()
    owner = await Owner.started(paths.database, "lock.hold_database(); " + HOLD)
    shutil.rmtree(paths.directory)
    with ManagerLock(paths) as lock, pytest.raises(ManagerAlreadyRunning, match=r"manages .*a\.db"):
        lock.hold_database()
    await owner.aclose()
    with ManagerLock(paths) as lock:
        lock.hold_database()


@linux_only
def test_nor_a_second_owner_in_the_same_process(paths):
    paths.database.touch()
    with ManagerLock(paths) as first:
        first.hold_database()
        shutil.rmtree(paths.directory)
        with (
            ManagerLock(paths) as second,
            pytest.raises(ManagerAlreadyRunning, match=f"process {os.getpid()} "),
        ):
            second.hold_database()
    with ManagerLock(paths) as third:
        third.hold_database()


@linux_only
def test_the_owner_and_others_still_use_the_database(paths):
    with closing(sqlite3.connect(paths.database, timeout=0)) as own, ManagerLock(paths) as lock:
        lock.hold_database()
        with own:
            own.execute("create table t (x)")
        with closing(sqlite3.connect(paths.database, timeout=0)) as another, another:
            another.execute("insert into t values (1)")


def test_a_database_that_is_taken_away_is_noticed(paths: RuntimePaths) -> None:
    paths.database.write_bytes(b"one")
    with ManagerLock(paths) as lock:
        assert lock.trouble() is None, "it is not held yet"
        lock.hold_database()
        assert lock.trouble() is None
        kept = paths.database.rename(paths.database.with_name("kept"))
        assert "deleted" in (lock.trouble() or "")
        paths.database.write_bytes(b"another")
        assert "replaced" in (lock.trouble() or "")
        kept.replace(paths.database)
        assert lock.trouble() is None, "it was put back"
