"""The store in an SQLite file.

All work on the connection is done by one worker thread at a time, under a limiter of its own, so a slow disk
holds up nothing else. A transaction that has begun in the thread is finished there, whatever happens to the
task that waits for it; each takes milliseconds, and waiting for another program's lock is cut into
short pieces, between which a cancellation is heeded.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import trio
from attrs import evolve

from ..core.moves import JournalPlace
from ..core.stats import Histogram
from ..errors import DatabaseUnusable, InvalidRequest, StorageError
from ..models import (
    Event,
    Fact,
    HealthCheck,
    InstanceEnd,
    InstanceRecord,
    JobState,
    JoinSecret,
    MinuteFigures,
    NodeRecord,
    RoutingRule,
    ServiceSpec,
    Token,
    TokenPolicy,
    utc_now,
)
from . import copies, minutes, schema, tables
from .group_commit import GroupCommit
from .pruning import Pruner
from .schema import UnreadableRow
from .store import RULES, SERVICES, TOKENS, F, HistoryLimits, Snapshot, event_id

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH_INTERVAL_S = 0.5
BATCH_FACTS = 1000  #: in one transaction: about 20 ms
QUEUED_FACTS = 20_000  #: about 10 MB; beyond it the newest are dropped
RETRY_S = 1.0  #: between tries while the disk is full or the file locked
PRUNE_INTERVAL_S = 10.0
LOCK_PATIENCE_S = 5.0  #: for another program, such as the sqlite3 shell, to end its transaction
LOCK_PIECE_MS = 100


class SqliteStore:
    """See `Store` for what each method promises; `open_store` makes one."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection | None,
        limiter: trio.CapacityLimiter,
        limits: HistoryLimits,
        lock_patience_s: float,
    ) -> None:
        self._path = path
        self._db = db  # None: for reading only
        self._limiter = limiter
        self._lock_patience_s = lock_patience_s
        self._group_commit = GroupCommit(self._write)
        self._pruner = Pruner(limits)
        self._prune_by_age_at = trio.current_time()
        self._queue: deque[Fact] = deque()
        self._arrived = trio.Event()
        self._flushing = trio.Lock()
        self._last_event_id = 0 if db is None else tables.last_event_id(db)
        self._degraded: str | None = None
        self._dropped = 0
        self.timings = {"read": Histogram(), "write": Histogram()}

    @property
    def degraded(self) -> str | None:
        return self._degraded

    @property
    def dropped(self) -> int:
        return self._dropped

    async def load(self) -> Snapshot:
        await self._flush_if_possible()
        return await self._read(tables.load, Snapshot())

    async def add_service(self, spec: ServiceSpec) -> None:
        await self._write(lambda db: tables.add(db, SERVICES, spec.service_id, spec))

    async def update_service(self, spec: ServiceSpec) -> None:
        await self._write(lambda db: tables.update(db, SERVICES, spec.service_id, spec))

    async def delete_service(self, service_id: str) -> None:
        await self._write(lambda db: tables.delete(db, SERVICES, service_id))
        self._pruner.forget(service_id)

    async def add_rule(self, rule: RoutingRule) -> None:
        await self._write(lambda db: tables.add(db, RULES, rule.rule_id, rule))

    async def update_rule(self, rule: RoutingRule) -> None:
        await self._write(lambda db: tables.update(db, RULES, rule.rule_id, rule))

    async def delete_rule(self, rule_id: str) -> None:
        await self._write(lambda db: tables.delete(db, RULES, rule_id))

    async def tokens(self) -> tuple[Token, ...]:
        return await self._read(tables.tokens, ())

    async def add_token(self, token: Token, policy: TokenPolicy | None = None) -> None:
        def job(db: sqlite3.Connection) -> None:
            tables.add(db, TOKENS, token.token_id, token)
            if policy is not None:
                tables.set_token_policy(db, policy)

        await self._write(job)

    async def delete_token(self, token_id: str) -> None:
        await self._write(lambda db: tables.delete(db, TOKENS, token_id))

    async def token_policy(self) -> TokenPolicy:
        return await self._read(tables.token_policy, TokenPolicy())

    async def set_token_policy(self, policy: TokenPolicy) -> None:
        await self._write(lambda db: tables.set_token_policy(db, policy))

    async def put_instance(self, record: InstanceRecord) -> None:
        await self._group_commit.do(lambda db: tables.put_instance(db, record))

    async def delete_instance(self, instance_id: str) -> None:
        await self._group_commit.do(lambda db: tables.delete_instance(db, instance_id))

    async def put_job(self, service_id: str, state: JobState) -> None:
        await self._write(lambda db: tables.put_job(db, service_id, state))

    async def put_node(self, node: NodeRecord) -> None:
        await self._write(lambda db: tables.put_node(db, node))

    async def delete_node(self, node_id: str) -> None:
        await self._write(lambda db: tables.delete_node(db, node_id))

    async def put_journal_places(self, places: Iterable[JournalPlace]) -> None:
        places = tuple(places)

        def job(db: sqlite3.Connection) -> None:
            for place in places:
                tables.put_journal_place(db, place)

        await self._write(job)

    async def join_secrets(self) -> tuple[JoinSecret, ...]:
        return await self._read(tables.join_secrets, ())

    async def put_join_secret(self, secret: JoinSecret, *, with_node: NodeRecord | None = None) -> None:
        def job(db: sqlite3.Connection) -> None:
            tables.put_join_secret(db, secret)
            if with_node is not None:
                tables.put_node(db, with_node)

        await self._write(job)

    async def delete_join_secret(self, digest: str) -> None:
        await self._write(lambda db: tables.delete_join_secret(db, digest))

    def record(self, fact: F) -> F:
        if isinstance(fact, Event):
            self._last_event_id = event_id(fact, self._last_event_id)
            fact = cast(F, evolve(fact, event_id=self._last_event_id))
        if self._db is None or len(self._queue) >= QUEUED_FACTS:
            self._dropped += 1
        else:
            self._queue.append(fact)
            self._arrived.set()
        return fact

    async def flush(self) -> None:
        async with self._flushing:
            while self._queue:
                await self._write_batch(tuple(islice(self._queue, BATCH_FACTS)))

    async def health_history(self, service_id: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        await self._flush_if_possible()
        return await self._read(lambda db: tables.health_history(db, service_id, limit), ())

    async def ends(self, service_id: str, *, limit: int = 50) -> tuple[InstanceEnd, ...]:
        await self._flush_if_possible()
        return await self._read(lambda db: tables.ends(db, service_id, limit), ())

    async def add_minute(self, minute: int, figures: Mapping[str, MinuteFigures]) -> None:
        await self._write(lambda db: minutes.add(db, minute, figures))

    async def minutes(
        self, service_ids: Collection[str], first: int, last: int
    ) -> Mapping[str, Mapping[int, MinuteFigures]]:
        return await self._read(lambda db: minutes.read(db, service_ids, first, last), {})

    async def events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        await self._flush_if_possible()
        return await self._read(lambda db: tables.events(db, after, limit), ())

    async def backup(self, destination: Path) -> None:
        await self._flush_if_possible()
        # It reads through a connection of its own, and may take long: the limiter stays free for the others.
        await trio.to_thread.run_sync(
            copies.back_up, self._path, destination, limiter=trio.CapacityLimiter(1)
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes what is recorded until it is cancelled, and then what is left."""
        task_status.started()
        try:
            while True:
                if not self._queue:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await trio.sleep(RETRY_S if self._degraded else BATCH_INTERVAL_S)
                await self._flush_if_possible()
        finally:
            with trio.CancelScope(shield=True):
                await self._flush_if_possible()

    async def _flush_if_possible(self) -> None:
        try:
            await self.flush()
        except StorageError as error:
            if self._degraded is None:
                log.error("recorded facts wait in memory: %s", error)
            self._degraded = error.message

    async def _write_batch(self, batch: tuple[Fact, ...]) -> None:
        prune_by_age = trio.current_time() >= self._prune_by_age_at

        def job(db: sqlite3.Connection) -> int:
            refused = tables.write_facts(db, batch)
            self._pruner.by_count(db, batch)
            if prune_by_age:
                self._pruner.by_age(db, utc_now())
            return refused

        self._dropped += await self._write(job)
        for _ in batch:
            self._queue.popleft()
        if prune_by_age:
            self._prune_by_age_at = trio.current_time() + PRUNE_INTERVAL_S
        if self._degraded is not None:
            log.info("recorded facts are written again")
            self._degraded = None

    async def _read(self, job: Callable[[sqlite3.Connection], T], empty: T) -> T:
        return await self._in_thread("read", partial(self._read_now, job, empty))

    def _read_now(self, job: Callable[[sqlite3.Connection], T], empty: T) -> T:
        try:
            if self._db is not None:
                return job(self._db)
            if schema.inspect(self._path, every_page=False) == 0:
                return empty
            return schema.read_only(self._path, partial(schema.in_present_shape, job))
        except (sqlite3.Error, OSError, UnreadableRow) as error:
            raise schema.translated(error, self._path) from error

    async def _write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        work = partial(self._write_now, job)
        give_up_at = trio.current_time() + self._lock_patience_s
        while True:
            try:
                return await self._in_thread("write", work)
            except _Locked as error:
                if trio.current_time() >= give_up_at:
                    raise StorageError(error.message) from error

    async def _in_thread(self, kind: str, work: Callable[[], T]) -> T:
        began = trio.current_time()
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except (RuntimeError, MemoryError) as error:  # no new thread, or no memory, just now
            raise StorageError(f"the database {self._path} cannot be used now: {error}") from error
        finally:
            self.timings[kind].observe(trio.current_time() - began)

    def _write_now(self, job: Callable[[sqlite3.Connection], T]) -> T:
        db = self._db
        if db is None:
            raise DatabaseUnusable(f"the database {self._path} was opened for reading only")
        try:
            try:
                db.execute("BEGIN IMMEDIATE")
                result = job(db)
                db.execute("COMMIT")
                return result
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except UnicodeEncodeError as error:  # such as a file name that is not UTF-8
            raise InvalidRequest(f"{error.object!r} is not valid Unicode text: use another name") from error
        except (sqlite3.Error, UnreadableRow) as error:
            failure = schema.translated(error, self._path)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                failure = _Locked(failure.message)
            raise failure from error


class _Locked(StorageError):
    """Another connection's transaction is in the way; it may end."""


@asynccontextmanager
async def open_store(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    limits: HistoryLimits | None = None,
    lock_patience_s: float = LOCK_PATIENCE_S,
) -> AsyncIterator[SqliteStore]:
    """The store at `path`, made or brought up to date as needed. At the end, what was recorded is written.

    `read_only` is for looking on without being the manager: an absent file is an empty store, and each read
    sees what is there by then. Raises `DatabaseUnusable`, `DatabaseDamaged` and `DatabaseTooNew`, and leaves
    such a file untouched.
    """
    path = _real(path)
    limits = limits or HistoryLimits()
    limiter = trio.CapacityLimiter(1)
    if read_only:
        await trio.to_thread.run_sync(schema.inspect, path, limiter=limiter)
        yield SqliteStore(path, None, limiter, limits, lock_patience_s)
        return
    db = await trio.to_thread.run_sync(schema.open_for_writing, path, limiter=limiter)
    try:
        db.execute(f"PRAGMA busy_timeout = {LOCK_PIECE_MS}")
        store = SqliteStore(path, db, limiter, limits, lock_patience_s)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            try:
                yield store
            except Exception as error:  # so that it leaves as it is, and not in the nursery's group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(db.close, limiter=limiter)


def names(path: str | os.PathLike[str], table: str) -> list[str]:
    """The names in one of the tables that have them, in order; of an absent file none. Blocks; may raise
    anything that SQLite does: for completion, which drops it.
    """
    path = _real(path)
    if not path.exists():
        return []
    return schema.read_only(
        path, lambda db: [name for (name,) in db.execute(f"SELECT name FROM {table} ORDER BY name")]
    )


async def check(path: str | os.PathLike[str]) -> None:
    """Raises what `open_store` would raise for the file at `path`; nothing is made or changed."""
    await trio.to_thread.run_sync(schema.inspect, _real(path), limiter=trio.CapacityLimiter(1))


def _real(path: str | os.PathLike[str]) -> Path:
    # Links are followed, so that what lies beside the database is looked for where SQLite puts it.
    return Path(os.path.realpath(path))
