"""What the supervisor reports of its instances, and how it goes on when that cannot be recorded."""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from ..errors import AgentManagerError
from ..models import HealthCheck, Instance, InstanceEnd, InstanceRecord

log = logging.getLogger("agentmgr.supervisor")

PATIENCE_S = 2.0
"""How long an instance waits, in seconds, until its record is durable; then it goes on without.

A missing record only prevents adoption after a crash of the manager: the process has our token, so the next
manager ends it and starts another. To hold up an instance until the disk is well would cost more.
"""

_RETRY_S = (0.1, 10.0)  #: the first and the longest pause after a write that failed


class InstanceRecorder(Protocol):
    """Receives what happens to a supervisor's instances, as it happens."""

    async def instance_spawned(self, record: InstanceRecord) -> None:
        """The record is durable on return; before that the instance does not count as running."""

    async def instance_gone(self, instance_id: str) -> None:
        """Its process and all descendants have ended."""

    def instance_changed(self, instance: Instance) -> None:
        """Each change of status, health, pid and so on; synchronous and quick."""

    def instance_ended(self, end: InstanceEnd) -> None:
        """How each run of an instance ended, with its last output; synchronous and quick."""

    def health_checked(self, check: HealthCheck) -> None:
        """Each probe's result; synchronous and quick."""

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        """Returns when the instance has no connections left. `for_good`: no other takes its place."""


class NullRecorder:
    """A recorder that keeps nothing. Subclass it and override the methods whose events you want."""

    async def instance_spawned(self, record: InstanceRecord) -> None:
        await trio.lowlevel.checkpoint()

    async def instance_gone(self, instance_id: str) -> None:
        await trio.lowlevel.checkpoint()

    def instance_changed(self, instance: Instance) -> None:
        pass

    def instance_ended(self, end: InstanceEnd) -> None:
        pass

    def health_checked(self, check: HealthCheck) -> None:
        pass

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        await trio.lowlevel.checkpoint()


class RetryingRecorder:
    """Reports to a recorder. What that raises is logged, or retried (`Entry`), and stops no instance."""

    def __init__(self, recorder: InstanceRecorder) -> None:
        self._recorder = recorder
        self.news = trio.lowlevel.ParkingLot()  #: unparked at each change of any instance

    def instance_changed(self, instance: Instance) -> None:
        try:
            self._recorder.instance_changed(instance)
        except Exception:  # the recorder may be an embedder's code
            log.exception("the recorder failed on a change of instance %s", instance.instance_id)
        self.news.unpark_all()

    def instance_ended(self, end: InstanceEnd) -> None:
        try:
            self._recorder.instance_ended(end)
        except Exception:  # the recorder may be an embedder's code
            log.exception("the recorder failed on the end of instance %s", end.instance_id)

    def health_checked(self, check: HealthCheck) -> None:
        try:
            self._recorder.health_checked(check)
        except Exception:  # the recorder may be an embedder's code
            log.exception("the recorder failed on a health check of instance %s", check.instance_id)

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        try:
            await self._recorder.drain(instance_id, timeout_s, for_good=for_good)
        except Exception:  # the recorder may be an embedder's code
            log.exception("the recorder failed to drain instance %s; stopping it without", instance_id)

    async def instance_gone(self, instance_id: str) -> None:
        """For instances that ended before this manager began. On failure the next manager finds them dead."""
        try:
            await self._recorder.instance_gone(instance_id)
        except AgentManagerError as error:  # its message says enough, as for a full disk
            log.warning("cannot record that instance %s is gone: %s", instance_id, error)
        except Exception:  # the recorder may be an embedder's code
            log.exception("the recorder failed to drop instance %s", instance_id)

    def entry(self, instance_id: str) -> Entry:
        return Entry(self._recorder, instance_id)


class Entry:
    """The record of one instance. Its newest state is written as soon as the last write is done."""

    def __init__(self, recorder: InstanceRecorder, instance_id: str) -> None:
        self._recorder = recorder
        self._instance_id = instance_id
        self._record: InstanceRecord | None = None
        self.fails = False  #: the last write failed and is being retried
        self._written = trio.Event()
        self._written.set()
        self._news = trio.Event()

    def set(self, record: InstanceRecord | None) -> None:
        """Sets the state to write; None: the instance is gone."""
        self._record = record
        self._written = trio.Event()
        self._news.set()

    async def written(self) -> bool:
        """Waits until the state is durable, for at most `PATIENCE_S`; returns whether it is."""
        with trio.move_on_after(PATIENCE_S):
            await self._written.wait()
        return self._written.is_set()

    async def keep(self) -> None:
        """Writes each new state, until cancelled. A failed write is retried, and logged once."""
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
                await self._recorder.instance_spawned(self._record)
            else:
                await self._recorder.instance_gone(self._instance_id)
        except Exception as error:  # the disk may fail; the instance runs on
            if not self.fails:  # logged once
                log.warning("cannot record instance %s, retrying: %s", self._instance_id, error)
            self.fails = True
            return False
        self.fails = False
        return True
