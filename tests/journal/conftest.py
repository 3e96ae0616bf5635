"""A session's copy, as a host has it, and hosts' journals on one file."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
from attrs import evolve

from agentmgr.journal.journal import Frame, SessionRecord, SessionSnapshot
from agentmgr.journal.sqlite import open_journal


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
    def __init__(self, path):
        self.path = path
        self.open = partial(open_journal, path, lock_patience_s=0.3, retry_s=0.02)

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


@pytest.fixture(scope="session")
def hosts_at():
    return Hosts


@pytest.fixture
def hosts(tmp_path):
    return Hosts(tmp_path / "sessions" / "svc_1.db")
