"""A journal in an SQLite file, which the hosts of a service share.

One task of a host commits what all its sessions have handed over, in one transaction; then what has come
together meanwhile. So batches grow with the load, and no timer runs while nothing happens. A few events are
committed at once, see `_commit_here`, all else in a worker thread. Whole sessions and old events are read
through a second connection, so that commits do not wait for them.
"""

from __future__ import annotations

import logging
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
from .file import JournalFile
from .held import HeldSession
from .journal import (
    Held,
    HeldElsewhere,
    MayOwn,
    SessionNameTaken,
    SessionRecord,
    SessionSnapshot,
    StoredFrame,
    Unreachable,
)
from .links import HeldLink, LinkCopy
from .writing import Place

T = TypeVar("T")

log = logging.getLogger(__name__)

LOCK_PATIENCE_S = 5.0  #: for another process to end its transaction
DISK_PATIENCE_S = 10.0  #: for a disk that does not answer, as one of a network
LOCK_PAUSE_S = 0.002  #: between tries
HERE_BYTES = 256 * 1024  #: of events that are committed at once: it takes 2 ms at most
SLOW_S = 0.01  #: for such a commit; the disk has other work, or is full of it
AWAY_S = 1.0  #: so long all commits then go to the thread
RETRY_S = 1.0  #: between tries while the journal cannot be written
PENDING_BYTES = 64 * 2**20  #: of events that wait for the disk; it is too slow for more
PAGE_BYTES = 4096  #: a commit writes a page of an index, or more, for each session
LOG_BYTES = 8 * 2**20
LEFT_BEHIND = 1000  #: sessions that were given up while degraded, and are written once that ends


class SqliteJournal:
    """See `SessionJournal`; `open_journal` makes one."""

    durable = True

    def __init__(self, path: Path, instance_id: str, lock_patience_s: float, retry_s: float) -> None:
        self._file = JournalFile(path, instance_id)
        self._lock_patience_s, self._retry_s = lock_patience_s, retry_s
        self._told = False
        self._writer, self._reader, self._copier = (trio.CapacityLimiter(1) for _ in range(3))
        self._log_bytes = 0  # about; since it was last copied into the file
        self._log_is_long = trio.Event()
        self._held: set[HeldSession] = set()
        self._pending: list[HeldSession] = []  # those that have handed something over
        self._pending_bytes = 0
        self._arrived = trio.Event()
        self._links: set[HeldLink] = set()
        self._changed_links: list[HeldLink] = []
        self._flushes = trio.lowlevel.ParkingLot()
        self._slow_until = -math.inf  # as `time.monotonic` has it
        self._degraded: str | None = "it is not open yet"

    @property
    def degraded(self) -> str | None:
        return self._degraded

    @property
    def set_aside(self) -> Sequence[str]:
        return self._file.set_aside

    async def create(self, record: SessionRecord) -> Held:
        place = Place(record)
        if record.name is not None and self._degraded is None:
            create = partial(writing.create_named, place=place)
            taken = await self._try(self._writer, lambda: create(self._file.writes, self._file.holder))
            if taken is not None:
                raise SessionNameTaken(taken)
        else:
            await trio.lowlevel.checkpoint()
        return self._hold(place, SessionSnapshot(record, (), ()))

    async def take_up(self, session_id: str, may_own: MayOwn | None = None) -> Held | None:
        claimed = await self._try(self._writer, lambda: self._claim(session_id, may_own))
        if claimed is None:
            return None
        if isinstance(claimed, str):
            raise HeldElsewhere(holders.instance_of(claimed))
        row, epoch = claimed
        loaded = await self._try(self._reader, lambda: reading.load(self._file.reads, row))
        return self._hold(Place(loaded.record, row, epoch), loaded)

    async def named(self, owner: str | None, name: str) -> str | None:
        return await self._try(self._reader, lambda: reading.named(self._file.reads, owner, name))

    def keep_link(self, link_id: str, copy: LinkCopy) -> HeldLink:
        link = HeldLink(link_id, copy, self)
        self._links.add(link)
        return link

    async def take_link(self, link_id: str) -> str | None:
        return await self._try(
            self._writer, lambda: links.take_over(self._file.writes, self._file.holder, link_id)
        )

    async def unfinished(self) -> Sequence[str]:
        def find() -> list[str]:
            found = reading.unfinished(self._file.reads)
            return [
                session_id
                for session_id, holder in found
                if holder is None or not self._file.may_hold(holder)
            ]

        return await self._try(self._reader, find)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes what is handed over until it is cancelled, and then what is left."""
        await self._recover()
        task_status.started()
        try:
            while True:
                if self._degraded is not None:
                    await trio.sleep(self._retry_s)
                    await self._recover()
                elif self._pending or self._changed_links:
                    await self._flush()
                else:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
        finally:
            with trio.CancelScope(shield=True):
                if self._degraded is not None:
                    await self._recover()  # a last time
                while self._pending or self._changed_links:
                    await self._flush()
                with suppress(*_TROUBLE):
                    await self._in_thread(self._writer, self._file.close)

    async def copy_log(self) -> None:
        """Copies SQLite's log of commits into the file while more are made, whenever there is much of it.

        That waits for the disk; a commit that had to do it would hold up all sessions. Until it is cancelled.
        """
        while True:
            await self._log_is_long.wait()
            self._log_is_long, self._log_bytes = trio.Event(), 0
            copy = partial(schema.copy_log, self._file.path)
            with suppress(*_TROUBLE):  # the next commit meets it too
                if await self._in_thread(self._copier, copy) > schema.LOG_PAGES:
                    # It begins anew only when all is copied. So commits wait.
                    await self._in_thread(self._writer, copy)

    # What its sessions call.

    def arrived(self, held: HeldSession) -> None:
        self._pending.append(held)
        self._arrived.set()

    def more_bytes(self, size: int) -> None:
        self._pending_bytes += size
        if self._pending_bytes > PENDING_BYTES:
            self._degrade(f"the disk is too slow: over {PENDING_BYTES >> 20} MiB wait for it")

    def link_changed(self, link: HeldLink) -> None:
        if self._degraded is None:
            self._changed_links.append(link)
            self._arrived.set()
        else:
            link.drop()

    def let_link_go(self, link: HeldLink) -> None:
        self._links.discard(link)

    async def next_flush(self) -> None:
        await self._flushes.park()

    async def read_frames(self, place: Place, first: int, last: int, max_bytes: int) -> Sequence[StoredFrame]:
        if not place.row:
            await trio.lowlevel.checkpoint()
            return ()
        try:
            return await self._try(
                self._reader, lambda: reading.frames(self._file.reads, place.row, first, last, max_bytes)
            )
        except Unreachable:
            return ()

    def let_go(self, held: HeldSession) -> None:
        if not held.dirty or sum(other.released for other in self._held) > LEFT_BEHIND:
            self._held.discard(held)

    def _hold(self, place: Place, loaded: SessionSnapshot) -> HeldSession:
        held = HeldSession(self, place, loaded, dropping=self._degraded is not None)
        if loaded.record.ended_at is None:
            self._held.add(held)
        return held

    # The writer.

    async def _flush(self) -> None:
        size, self._pending_bytes = self._pending_bytes, 0
        self._log_bytes += size + len(self._pending) * PAGE_BYTES
        batch, self._pending = self._pending, []
        work = [(held.place, changes) for held in batch if (changes := held.take())]
        changed, self._changed_links = self._changed_links, []
        links_work = [(link, link.take()) for link in changed]
        try:
            done = None if size > HERE_BYTES or links_work else self._commit_here(work)
            if done is None:
                done = await self._in_thread(self._writer, lambda: self._commit(work, links_work))
        except _TROUBLE as error:
            self._fail(error)
            return
        gone, lost_links = set(done[0]), done[1]
        for held in batch:
            if held.place in gone:
                self._lose(held)
            else:
                held.wrote()
        for link in changed:
            link.wrote()
        for link in lost_links:
            link.copy.must_come_back()
        self._flushes.unpark_all()
        if self._log_bytes > LOG_BYTES:
            self._log_is_long.set()

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

    async def _recover(self) -> None:
        """Makes the file usable, and writes each session anew of which something was dropped."""
        try:
            if await self._in_thread(self._writer, self._file.make_ready):
                for held in self._held:
                    held.place.row, held.dirty = 0, True
            if self._told:  # what is kept of connections tells of less than their sessions will
                outdate = partial(links.outdate, link_ids=[link.id for link in self._links])
                await self._in_thread(self._writer, lambda: outdate(self._file.writes, self._file.holder))
            while waiting := [held for held in self._held if held.dropping]:
                for held in waiting:
                    held.dropping = False  # what comes from now on is not in the snapshot
                    if held.dirty:
                        await self._write_whole(held)
        except _TROUBLE as error:
            self._fail(error)
        else:
            if self._told:
                log.info("the journal %s is written again", self._file.path)
            self._degraded, self._told = None, False
            for link in self._links:
                link.changed()

    async def _write_whole(self, held: HeldSession) -> None:
        snapshot = held.snapshot()
        work = partial(writing.write_whole, held.place, snapshot, self._file.may_hold)
        try:
            kept = await self._in_thread(self._writer, lambda: work(self._file.writes, self._file.holder))
        except _UNWRITABLE as error:
            # Of this session alone. It goes on in memory.
            log.error("session %.8s… cannot be kept: %s", snapshot.record.session_id, error)
            self._held.discard(held)
            held.drop()
            return
        held.dirty = False
        if not kept:
            self._lose(held)
        elif held.released:
            held.write_release()
            self._held.discard(held)

    def _lose(self, held: HeldSession) -> None:
        self._held.discard(held)
        held.lose()

    def _fail(self, error: Exception) -> None:
        if schema.is_damage(error):
            self._file.is_damaged()
        if schema.is_lock(error):
            reason = "another program has it locked"
        elif isinstance(error, trio.TooSlowError):
            reason = "the disk does not answer"
        else:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
        self._degrade(reason)

    def _degrade(self, reason: str) -> None:
        if not self._told:
            log.error(
                "the journal %s: %s. Sessions go on in memory until it works again", self._file.path, reason
            )
        self._degraded, self._told = reason, True
        self._pending, self._pending_bytes = [], 0
        for held in list(self._held):
            held.drop()
        self._changed_links = []
        for link in self._links:
            link.drop()
        self._flushes.unpark_all()
        self._arrived.set()

    # In threads.

    async def _try(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        if self._degraded is not None:
            raise Unreachable(self._degraded)
        try:
            return await self._in_thread(limiter, work)
        except _TROUBLE as error:
            if schema.is_damage(error):
                self._fail(error)
            raise Unreachable(str(error)) from error

    async def _in_thread(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        give_up_at = trio.current_time() + self._lock_patience_s
        while True:
            try:
                # A thread that waits for a dead disk is left to itself; what it would do is done again.
                with trio.fail_after(DISK_PATIENCE_S, shield=True):
                    return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
            except sqlite3.Error as error:
                if not schema.is_lock(error) or trio.current_time() >= give_up_at:
                    raise
            with trio.CancelScope(shield=True):
                await trio.sleep(LOCK_PAUSE_S)

    def _commit(
        self, work: writing.Work, links: Sequence[tuple[HeldLink, str | None]]
    ) -> tuple[list[Place], list[HeldLink]]:
        self._file.check()
        return writing.write(self._file.writes, self._file.holder, work, links)

    def _claim(self, session_id: str, may_own: MayOwn | None) -> tuple[int, int] | str | None:
        file = self._file
        return writing.claim(file.writes, file.holder, session_id, file.may_hold, may_own)


_TROUBLE = (sqlite3.Error, OSError, RuntimeError, MemoryError, ValueError, OverflowError, trio.TooSlowError)
_UNWRITABLE = (ValueError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError)


@asynccontextmanager
async def open_journal(
    path: str | os.PathLike[str],
    instance_id: str,
    *,
    lock_patience_s: float = LOCK_PATIENCE_S,
    retry_s: float = RETRY_S,
) -> AsyncIterator[SqliteJournal]:
    """The journal at `path`, made when it is absent. At the end, what was handed over is written.

    It raises nothing for a file that cannot be used: the journal is degraded until it can.
    """
    journal = SqliteJournal(Path(path), instance_id, lock_patience_s, retry_s)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        nursery.start_soon(journal.copy_log)
        try:
            yield journal
        except Exception as error:  # so that it leaves as it is, and not in the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
