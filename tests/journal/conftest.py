"""A session's copy, as a host has it, and hosts' journals on one file."""

import itertools
from contextlib import asynccontextmanager
from functools import partial

import pytest
from attrs import evolve

from agentmgr.journal import holders, redis, redis_keys, redis_leases, redis_reading, sqlite_archive
from agentmgr.journal.file_archive import DirectoryArchive
from agentmgr.journal.journal import Frame, SessionRecord, SessionSnapshot
from agentmgr.journal.redis_archive import RedisArchive
from agentmgr.journal.redis_connection import RedisAddress, open_redis
from agentmgr.journal.sqlite import open_journal
from agentmgr.models import network_journal
from tests.redis_server import NEEDS_REDIS, running_redis


class Copy:
    """Keeps what it writes, as a `Session` does, and what it is called back for."""

    def __init__(self, held):
        self.held = held
        self.record = held.loaded.record
        self.turns = {turn.number: turn for turn in held.loaded.turns}
        self.frames = list(held.loaded.frames)
        self.questions = {question.step_id: question for question in held.loaded.questions}
        self.visible = self.record.last_seq
        self.is_lost = False
        held.keep(self)

    def committed(self, seq):
        assert not self.is_lost
        assert seq >= self.visible
        self.visible = seq

    def lost(self):
        assert not self.is_lost
        self.is_lost = True

    def snapshot(self):
        record = evolve(self.record, last_seq=self.last_seq)
        return SessionSnapshot(
            record, tuple(self.turns.values()), self.frames, tuple(self.questions.values())
        )

    @property
    def last_seq(self):
        return self.frames[-1].seq if self.frames else self.record.last_seq

    def say(self, *texts, turn=0):
        for text in texts:
            frame = Frame(self.last_seq + 1, turn, text.encode())
            self.frames.append(frame)
            self.held.write(frame)


class Hosts:
    """On one journal, whatever keeps it."""

    @staticmethod
    def record(session_id="ses_1", owner=None, at=1.0, **changes):
        return SessionRecord(session_id, owner, at, at, **changes)

    async def create(self, journal, session_id="ses_1", **changes):
        return Copy(await journal.create(self.record(session_id, **changes)))

    @staticmethod
    async def take_up(journal, session_id="ses_1"):
        held = await journal.take_up(session_id)
        return None if held is None else Copy(held)

    @asynccontextmanager
    async def one(self, instance_id="inst_1"):
        """A host with one session."""
        async with self.open(instance_id) as journal:
            yield journal, await self.create(journal)


class FileHosts(Hosts):
    """On an SQLite file."""

    def __init__(self, path):
        self.path = path
        self.service_id, self.archive = path.stem, DirectoryArchive(path.parent)
        self.open = partial(open_journal, path, lock_patience_s=0.3, retry_s=0.02)

    async def revoke(self, instance_id):
        holders.revoke(self.path.parent, instance_id)

    def place(self, _):
        """For `host_process`: where the journal is, and what a host's environment has of it."""
        return str(self.path), {}

    async def ended(self, instance_id):
        """What a manager does when the process of an instance has ended."""

    async def events(self, session_id):
        found = []
        while more := sqlite_archive.events(self.path, session_id, len(found)):
            found += more
        return found

    async def lose(self):
        self.path.unlink(missing_ok=True)


_services = itertools.count(1)


class RedisHosts(Hosts):
    """In Redis, each under keys of their own. All runs of an instance are one holder."""

    def __init__(self, server, **options):
        self.server = server
        self.service_id = f"svc_{next(_services)}"
        self.keys = redis_keys.Keys(self.service_id)
        self.archive = self.archive_at(server.url)
        options = {"patience_s": 0.3, "retry_s": 0.02, "renew_s": 0.3} | options
        self._open = partial(redis.open_journal, server.url, self.keys.service_id, **options)
        self._runs = itertools.count(1)
        self._run_of = {}

    def open(self, instance_id):
        return self._open(instance_id, run=self._new_run(instance_id))

    def place(self, instance_id):
        return f"{self.server.url}#{self.keys.service_id}", {"RUN": self._new_run(instance_id)}

    def _new_run(self, instance_id):
        run = self._run_of[instance_id] = f"{next(self._runs)}"
        return run

    @staticmethod
    def archive_at(url):
        return RedisArchive(network_journal.shown(url), lambda: open_redis(RedisAddress.parse(url)))

    @asynccontextmanager
    async def redis(self):
        async with open_redis(RedisAddress.parse(self.server.url)) as connected:
            yield connected

    async def revoke(self, instance_id):
        async with self.redis() as connected:
            holder = f"{instance_id}:{self._run_of[instance_id]}"
            await redis_leases.revoke(connected, self.keys, holder)

    ended = revoke

    async def events(self, session_id):
        async with self.redis() as connected:
            return await redis_reading.frames(connected, self.keys, session_id, 1, 2**62, 2**30)

    async def lose(self):
        async with self.redis() as connected:
            ours = await connected.call("KEYS", self.keys.base.replace("{", "\\{") + "*")
            if ours:
                await connected.call("DEL", *ours)


@pytest.fixture(scope="session")
def redis_server():
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def hosts_at():
    return FileHosts


@pytest.fixture(scope="session")
def redis_hosts_at():
    return RedisHosts


STORES = ["sqlite", pytest.param("redis", marks=NEEDS_REDIS)]


@pytest.fixture(params=STORES)
def any_hosts(request, tmp_path):
    if request.param == "sqlite":
        return FileHosts(tmp_path / "sessions" / "svc_1.db")
    return RedisHosts(request.getfixturevalue("redis_server"))


@pytest.fixture
def hosts(tmp_path):
    """Those of SQLite alone."""
    return FileHosts(tmp_path / "sessions" / "svc_1.db")


@pytest.fixture
def redis_hosts(redis_server):
    return RedisHosts(redis_server)
