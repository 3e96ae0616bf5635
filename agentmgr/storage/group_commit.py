"""One transaction for what several tasks write at the same time.

Of a short write, the commit takes longest, and the way to the thread and back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio
from attrs import define

Job = Callable[[sqlite3.Connection], None]

MOST = 200  #: in one transaction: some 10 ms


class Write(Protocol):
    def __call__(self, job: Callable[[sqlite3.Connection], list[bool]], /) -> Awaitable[list[bool]]:
        """Does it in one transaction, and returns what it returned. May raise anything."""


@define(eq=False)
class _Waiting:
    job: Job
    is_done: bool = False


class GroupCommit:
    """`write` as `SqliteStore` has it, for jobs of which many come at once.

    Whoever comes while a transaction is under way shares the next one. A job that fails in company is done
    again alone: so its error is its own, and nothing of it stays.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting: list[_Waiting] = []  # the first one first
        self._turn = trio.Lock()

    async def do(self, job: Job) -> None:
        """Returns when it is durable. Raises what the job raises, or `write`."""
        mine = _Waiting(job)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if mine in self._waiting:
                    group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                    if group == [mine]:
                        await self._write(partial(_alone, job))
                        return
                    await self._do_together(group)
        finally:
            if mine in self._waiting:  # it was cancelled before its turn
                self._waiting.remove(mine)
        if not mine.is_done:
            await self._write(partial(_alone, job))

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
