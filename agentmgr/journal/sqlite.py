"""A journal in an SQLite file, which the hosts of a service share.

A few events are committed at once, see `_commit_here`, all else in a worker thread. Whole sessions and old
events are read through a second connection, so that commits do not wait for them.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from . import holders, links, reading, schema, writing
from .durable import RETRY_S, DurableJournal, LinkWork, Trouble, Unwritable, opened
from .file import JournalFile
from .journal import MayOwn, SessionSnapshot, StoredFrame
from .links import HeldLink
from .writing import Place

T = TypeVar("T")

LOCK_PATIENCE_S = 5.0  #: for another process to end its transaction
DISK_PATIENCE_S = 10.0  #: for a disk that does not answer, as one of a network
LOCK_PAUSE_S = 0.002  #: between tries
HERE_BYTES = 256 * 1024  #: of events that are committed at once: it takes 2 ms at most
SLOW_S = 0.01  #: for such a commit; the disk has other work, or is full of it
AWAY_S = 1.0  #: so long all commits then go to the thread
PAGE_BYTES = 4096  #: a commit writes a page of an index, or more, for each session
LOG_BYTES = 8 * 2**20


class SqliteStore:
    """See `Store`."""

    def __init__(self, path: Path, instance_id: str, lock_patience_s: float) -> None:
        self._file = JournalFile(path, instance_id)
        self._lock_patience_s = lock_patience_s
        self._writer, self._reader, self._copier = (trio.CapacityLimiter(1) for _ in range(3))
        self._log_bytes = 0  # about; since it was last copied into the file
        self._log_is_long = trio.Event()
        self._slow_until = -math.inf  # as `time.monotonic` has it

    @property
    def shown(self) -> str:
        return str(self._file.path)

    @property
    def holder(self) -> str:
        return self._file.holder

    @property
    def set_aside(self) -> Sequence[str]:
        return self._file.set_aside

    async def make_ready(self) -> bool:
        return await self._in_thread(self._writer, self._file.make_ready)

    async def commit(
        self, work: writing.Work, links: LinkWork, size: int
    ) -> tuple[list[Place], list[HeldLink]]:
        self._log_bytes += size + len(work) * PAGE_BYTES
        try:
            done = None if size > HERE_BYTES or links else self._commit_here(work)
        except _TROUBLE as error:
            raise self._trouble(error) from error
        if done is None:
            done = await self._in_thread(self._writer, lambda: self._commit(work, links))
        if self._log_bytes > LOG_BYTES:
            self._log_is_long.set()
        return done

    async def write_whole(self, place: Place, snapshot: SessionSnapshot) -> bool:
        work = partial(writing.write_whole, place, snapshot, self._file.may_hold)
        try:
            return await self._in_thread(self._writer, lambda: work(self._file.writes, self.holder))
        except Trouble as trouble:
            if isinstance(trouble.__cause__, _UNWRITABLE):
                raise Unwritable(str(trouble)) from trouble
            raise

    async def outdate(self, link_ids: Sequence[str]) -> None:
        await self._in_thread(self._writer, lambda: links.outdate(self._file.writes, self.holder, link_ids))

    async def create_named(self, place: Place) -> str | None:
        create = partial(writing.create_named, place=place)
        return await self._in_thread(self._writer, lambda: create(self._file.writes, self.holder))

    async def take_up(
        self, session_id: str, may_own: MayOwn | None
    ) -> tuple[Place, SessionSnapshot] | str | None:
        file = self._file

        def claim() -> tuple[int, int] | str | None:
            return writing.claim(file.writes, file.holder, session_id, file.may_hold, may_own)

        claimed = await self._in_thread(self._writer, claim)
        if claimed is None:
            return None
        if isinstance(claimed, str):
            return holders.instance_of(claimed)
        row, epoch = claimed
        loaded = await self._in_thread(self._reader, lambda: reading.load(file.reads, row))
        return Place(loaded.record, row, epoch), loaded

    async def named(self, owner: str | None, name: str) -> str | None:
        return await self._in_thread(self._reader, lambda: reading.named(self._file.reads, owner, name))

    async def frames(self, place: Place, first: int, last: int, max_bytes: int) -> Sequence[StoredFrame]:
        read = partial(reading.frames, row=place.row, first=first, last=last, max_bytes=max_bytes)
        return await self._in_thread(self._reader, lambda: read(self._file.reads))

    async def take_link(self, link_id: str) -> str | None:
        return await self._in_thread(
            self._writer, lambda: links.take_over(self._file.writes, self.holder, link_id)
        )

    async def unfinished(self) -> Sequence[str]:
        def find() -> list[str]:
            found = reading.unfinished(self._file.reads)
            return [
                session_id
                for session_id, holder in found
                if holder is None or not self._file.may_hold(holder)
            ]

        return await self._in_thread(self._reader, find)

    async def attend(self, troubled: Callable[[Trouble], None], stale: Callable[[], None]) -> None:
        """Copies SQLite's log of commits into the file while more are made, whenever there is much of it.

        That waits for the disk; a commit that had to do it would hold up all sessions. Until it is cancelled.
        """
        while True:
            await self._log_is_long.wait()
            self._log_is_long, self._log_bytes = trio.Event(), 0
            copy = partial(schema.copy_log, self._file.path)
            with suppress(Trouble):  # the next commit meets it too
                if await self._in_thread(self._copier, copy) > schema.LOG_PAGES:
                    # It begins anew only when all is copied. So commits wait.
                    await self._in_thread(self._writer, copy)

    async def close(self) -> None:
        await self._in_thread(self._writer, self._file.close)

    def _commit_here(self, work: writing.Work) -> tuple[list[Place], list[HeldLink]] | None:
        """Commits a few events in the thread that calls; None: it is left to the worker thread.

        A commit of ten events takes 50 µs: SQLite hands its pages to the kernel, and waits for no disk. By
        way of the worker thread it took 200 µs more, and a millisecond until both threads were awake. Where
        the kernel is slow all the same, as while much else is written to the disk, the next commits are the
        thread's. So are those that meet another process's transaction: nothing here waits for one.
        """
        began = time.monotonic()
        if began < self._slow_until or self._writer.borrowed_tokens or not writing.is_of_events(work):
            return None
        try:
            self._file.check()
            return writing.write_events(self._file.writes, work), []
        except sqlite3.Error as error:
            if schema.is_lock(error):
                return None
            raise
        finally:
            if (ended := time.monotonic()) > began + SLOW_S:
                self._slow_until = ended + AWAY_S

    async def _in_thread(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        """Raises `Trouble`, from the error that was met."""
        give_up_at = trio.current_time() + self._lock_patience_s
        while True:
            try:
                # A thread that waits for a dead disk is left to itself; what it would do is done again.
                with trio.fail_after(DISK_PATIENCE_S, shield=True):
                    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
            except _TROUBLE as error:
                if not schema.is_lock(error) or trio.current_time() >= give_up_at:
                    raise self._trouble(error) from error
            with trio.CancelScope(shield=True):
                await trio.sleep(LOCK_PAUSE_S)

    def _trouble(self, error: Exception) -> Trouble:
        if schema.is_damage(error):
            self._file.is_damaged()
            return Trouble(str(error), is_damage=True)
        if schema.is_lock(error):
            return Trouble("another program has it locked")
        if isinstance(error, trio.TooSlowError):
            return Trouble("the disk does not answer")
        return Trouble((isinstance(error, OSError) and error.strerror) or str(error))

    def _commit(self, work: writing.Work, links: LinkWork) -> tuple[list[Place], list[HeldLink]]:
        """In a thread."""
        self._file.check()
        return writing.write(self._file.writes, self._file.holder, work, links)


_TROUBLE = (sqlite3.Error, OSError, RuntimeError, MemoryError, ValueError, OverflowError, trio.TooSlowError)
_UNWRITABLE = (ValueError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError)


@asynccontextmanager
async def open_journal(
    path: str | os.PathLike[str],
    instance_id: str,
    *,
    lock_patience_s: float = LOCK_PATIENCE_S,
    retry_s: float = RETRY_S,
) -> AsyncIterator[DurableJournal]:
    """The journal at `path`, made when it is absent: see `opened`."""
    store = SqliteStore(Path(path), instance_id, lock_patience_s)
    async with opened(DurableJournal(store, retry_s)) as journal:
        yield journal
