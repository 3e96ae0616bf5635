"""One transaction for what several tasks write at the same time.

Of a short write, the commit takes longest, and the way to the thread and back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio
from attrs import Factory, define

Job = Callable[[sqlite3.Connection], None]

MOST = 200  #: in one transaction: some 10 ms


class Write(Protocol):
    def __call__(self, job: Callable[[sqlite3.Connection], list[bool]], /) -> Awaitable[list[bool]]:
        """Does it in one transaction, and returns what it returned. May raise anything."""


@define(eq=False)
class _Waiting:
    job: Job
    called: trio.Event = Factory(trio.Event)  #: its group was written or not, or it is to write the next one
    in_group: bool = False
    is_done: bool = False


class GroupCommit:
    """`write` as `SqliteStore` has it, for jobs of which many come at once.

    Whoever comes while a transaction is under way shares the next one. A job that fails in company is done
    again alone: so its error is its own, and nothing of it stays.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting: list[_Waiting] = []  # the first one first
        self._under_way = False

    async def do(self, job: Job) -> None:
        """Returns when it is durable. Raises what the job raises, or `write`."""
        mine = _Waiting(job)
        self._waiting.append(mine)
        if self._under_way:
            try:
                await mine.called.wait()
            except trio.Cancelled:
                if not mine.in_group:
                    self._waiting.remove(mine)
                raise
        if not mine.in_group:
            await self._write_group()
        if not mine.is_done:
            await self._write(partial(_alone, job))

    async def _write_group(self) -> None:
        """That of the first one that waits, by that one."""
        self._under_way = True
        group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        for each in group:
            each.in_group = True
        try:
            if len(group) > 1:
                await self._do_together(group)
            else:
                await self._write(partial(_alone, group[0].job))
                group[0].is_done = True
        finally:
            # All at once: if each called the next, the last would wait for as many turns of a busy loop.
            for each in group:
                each.called.set()
            if self._waiting:
                self._waiting[0].called.set()
            else:
                self._under_way = False

    async def _do_together(self, group: list[_Waiting]) -> None:
        try:
            done = await self._write(partial(_together, [each.job for each in group]))
        except Exception:  # of none of them more than of the others: each finds out alone
            return
        for each, is_done in zip(group, done, strict=True):
            each.is_done = is_done


def _alone(job: Job, db: sqlite3.Connection) -> list[bool]:
    job(db)
    return [True]


def _together(jobs: list[Job], db: sqlite3.Connection) -> list[bool]:
    done = []
    for job in jobs:
        db.execute("SAVEPOINT one")
        try:
            job(db)
        except Exception:  # whatever it is, it concerns this one only
            db.execute("ROLLBACK TO one")
            done.append(False)
        else:
            done.append(True)
        db.execute("RELEASE one")
    return done
