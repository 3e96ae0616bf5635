"""What the supervisor tells its owner, and how it keeps going when the owner's disk does not."""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from ..errors import AgentManagerError
from ..models import HealthCheck, Instance, InstanceRecord

log = logging.getLogger("agentmgr.supervisor")

PATIENCE_S = 2.0
"""How long an instance waits until it is written down, in seconds, before it goes on without.

A record that is missing costs the adoption after a crash of the manager, nothing else: the process bears
our token, so the next manager ends it and starts another. An instance that waited for the disk would cost
more.
"""

_RETRY_S = (0.1, 10.0)  #: the first and the longest pause after a write that failed


class Journal(Protocol):
    """What a supervisor tells, as it happens."""

    async def instance_spawned(self, record: InstanceRecord) -> None:
        """Durable on return; the instance does not count as running before."""

    async def instance_gone(self, instance_id: str) -> None:
        """Its process, and all that this one started, has ended."""

    def instance_changed(self, instance: Instance) -> None:
        """Each change of status, health, pid and so on; synchronous and quick."""

    def health_checked(self, check: HealthCheck) -> None:
        """Each probe's result; synchronous and quick."""

    async def drain(self, instance_id: str, timeout_s: float) -> None:
        """Returns when the instance has no sessions left."""


class Unrecorded:
    """A journal that keeps nothing. Subclass it to be told of what you want to know."""

    async def instance_spawned(self, record: InstanceRecord) -> None:
        await trio.lowlevel.checkpoint()

    async def instance_gone(self, instance_id: str) -> None:
        await trio.lowlevel.checkpoint()

    def instance_changed(self, instance: Instance) -> None:
        pass

    def health_checked(self, check: HealthCheck) -> None:
        pass

    async def drain(self, instance_id: str, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()


class Owner:
    """Tells a journal, and takes whatever it raises: that must not end an instance, nor stop it half-way."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.news = trio.lowlevel.ParkingLot()  #: unparked at each change of any instance

    def instance_changed(self, instance: Instance) -> None:
        try:
            self._journal.instance_changed(instance)
        except Exception:  # an embedder's code; it must not end what it is told of
            log.exception("the journal failed to take a change of %s", instance.instance_id)
        self.news.unpark_all()

    def health_checked(self, check: HealthCheck) -> None:
        try:
            self._journal.health_checked(check)
        except Exception:  # an embedder's code; it must not end what it is told of
            log.exception("the journal failed to take a check of %s", check.instance_id)

    async def drain(self, instance_id: str, timeout_s: float) -> None:
        try:
            await self._journal.drain(instance_id, timeout_s)
        except Exception:  # an embedder's code; it must not end what it is told of
            log.exception("draining %s failed; it is stopped all the same", instance_id)

    async def instance_gone(self, instance_id: str) -> None:
        """For what was gone before we came; a record that stays is found dead again by the next manager."""
        try:
            await self._journal.instance_gone(instance_id)
        except AgentManagerError as error:  # it says itself what is wrong, as of a full disk
            log.warning("cannot write down that instance %s is gone: %s", instance_id, error)
        except Exception:  # an embedder's code; it must not end what it is told of
            log.exception("the journal failed to forget %s", instance_id)

    def entry(self, instance_id: str) -> Entry:
        return Entry(self._journal, instance_id)


class Entry:
    """The record of one instance, written down in order and at the disk's pace; the newest fact counts."""

    def __init__(self, journal: Journal, instance_id: str) -> None:
        self._journal = journal
        self._instance_id = instance_id
        self._record: InstanceRecord | None = None
        self.fails = False  #: what is to be written could not be, so far
        self._written = trio.Event()
        self._written.set()
        self._news = trio.Event()

    def set(self, record: InstanceRecord | None) -> None:
        """What is to be written; None: it is gone."""
        self._record = record
        self._written = trio.Event()
        self._news.set()

    async def written(self) -> bool:
        """Whether it is written down, after waiting for that as long as is reasonable."""
        with trio.move_on_after(PATIENCE_S):
            await self._written.wait()
        return self._written.is_set()

    async def keep(self) -> None:
        """Writes whatever comes, until cancelled. A failure is tried again, and told once."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            written = self._written
            pause_s, longest_s = _RETRY_S
            while not await self._write():
                self._news = trio.Event()
                with trio.move_on_after(pause_s):
                    await self._news.wait()
                written = self._written
                pause_s = min(2 * pause_s, longest_s)
            written.set()

    async def _write(self) -> bool:
        try:
            if self._record is not None:
                await self._journal.instance_spawned(self._record)
            else:
                await self._journal.instance_gone(self._instance_id)
        except Exception as error:  # whatever is wrong with the owner's disk, the instance runs on
            if not self.fails:  # told once
                log.warning("cannot write down instance %s, trying again: %s", self._instance_id, error)
            self.fails = True
            return False
        self.fails = False
        return True
