"""A journal that outlives its hosts: what its stores, SQLite's and Redis', have in common.

One task of a host commits what all its sessions have handed over, in one transaction; then what has come
together meanwhile. So batches grow with the load, and no timer runs while nothing happens. While the store
cannot be written, sessions go on in memory, and are written anew from their copies once it can.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol

import trio

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
from .writing import Place, Work

log = logging.getLogger(__name__)

RETRY_S = 1.0  #: between tries while the journal cannot be written
PENDING_BYTES = 64 * 2**20  #: of events that wait for the store; it is too slow for more
LEFT_BEHIND = 1000  #: sessions that were given up while degraded, and are written once that ends


class Trouble(Exception):
    """The store cannot be used just now; its message says why."""

    def __init__(self, reason: str, *, is_damage: bool = False) -> None:
        super().__init__(reason)
        self.is_damage = is_damage  #: waiting does not help: it is to be made ready anew


class Unwritable(Exception):
    """What a session has cannot be written; all others can."""


class Stale(Exception):
    """The store lacks what was committed before: it is to be made ready, and all sessions written anew."""


LinkWork = Sequence[tuple[HeldLink, str | None]]  #: None: what is kept of it is to be deleted


class Store(Protocol):
    """Where a journal keeps what it has. All that waits raises `Trouble`."""

    @property
    def shown(self) -> str:
        """For messages; no secret is in it."""

    @property
    def holder(self) -> str:
        """This host, as it runs now."""

    @property
    def set_aside(self) -> Sequence[str]: ...

    async def make_ready(self) -> bool:
        """Whether it lacks, or may lack, what it had before."""

    async def commit(
        self, work: Work, links: LinkWork, size: int
    ) -> tuple[Iterable[Place], Iterable[HeldLink]]:
        """All of it, or nothing. `size`: bytes of its events. Returns the places and links that others have
        by now. Raises `Stale`.
        """

    async def write_whole(self, place: Place, snapshot: SessionSnapshot) -> bool:
        """Writes a session as its copy has it, whatever the store has, but for events that are there: what
        has a number never changes. False where another holder has it, or where it was erased: a place that a
        store cannot have has no row. Raises `Unwritable`.
        """

    async def outdate(self, link_ids: Sequence[str]) -> None:
        """No host goes on from what is kept of this host's connections, these among them."""

    async def create_named(self, place: Place) -> str | None:
        """Writes a new session, unless one of its owner has its name: returns the id of that."""

    async def take_up(
        self, session_id: str, may_own: MayOwn | None
    ) -> tuple[Place, SessionSnapshot] | str | None:
        """Claims it; returns the instance that holds it, and may; None: there is none for who asks."""

    async def named(self, owner: str | None, name: str) -> str | None: ...

    async def frames(self, place: Place, first: int, last: int, max_bytes: int) -> Sequence[StoredFrame]: ...

    async def take_link(self, link_id: str) -> str | None: ...

    async def unfinished(self) -> Sequence[str]: ...

    async def attend(self, troubled: Callable[[Trouble], None], stale: Callable[[], None]) -> None:
        """Does what is to be done beside the commits. Until it is cancelled."""

    async def close(self) -> None: ...


class DurableJournal:
    """See `SessionJournal`."""

    durable = True

    def __init__(self, store: Store, retry_s: float = RETRY_S) -> None:
        self._store = store
        self._retry_s = retry_s
        self._told = False
        self._held: set[HeldSession] = set()
        self._pending: list[HeldSession] = []  # those that have handed something over
        self._pending_bytes = 0
        self._arrived = trio.Event()
        self._links: set[HeldLink] = set()
        self._changed_links: list[HeldLink] = []
        self._flushes = trio.lowlevel.ParkingLot()
        self._degraded: str | None = "it is not open yet"
        self._is_stale = False

    @property
    def degraded(self) -> str | None:
        return self._degraded

    @property
    def set_aside(self) -> Sequence[str]:
        return self._store.set_aside

    async def create(self, record: SessionRecord) -> Held:
        place = Place(record)
        if record.name is not None and self._degraded is None:
            with self._reached():
                taken = await self._store.create_named(place)
            if taken is not None:
                raise SessionNameTaken(taken)
        else:
            await trio.lowlevel.checkpoint()
        return self._hold(place, SessionSnapshot(record, (), ()))

    async def take_up(self, session_id: str, may_own: MayOwn | None = None) -> Held | None:
        with self._reached():
            claimed = await self._store.take_up(session_id, may_own)
        if claimed is None:
            return None
        if isinstance(claimed, str):
            raise HeldElsewhere(claimed)
        return self._hold(*claimed)

    async def named(self, owner: str | None, name: str) -> str | None:
        with self._reached():
            return await self._store.named(owner, name)

    def keep_link(self, link_id: str, copy: LinkCopy) -> HeldLink:
        link = HeldLink(link_id, copy, self)
        self._links.add(link)
        return link

    async def take_link(self, link_id: str) -> str | None:
        with self._reached():
            return await self._store.take_link(link_id)

    async def unfinished(self) -> Sequence[str]:
        with self._reached():
            return await self._store.unfinished()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes what is handed over until it is cancelled, and then what is left."""
        await self._recover()
        task_status.started()
        try:
            while True:
                if self._degraded is not None:
                    await trio.sleep(self._retry_s)
                if self._degraded is not None or self._has_work():
                    with trio.CancelScope(shield=True):  # what is on its way to the store would be lost
                        await (self._work() if self._degraded is None else self._recover())
                else:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
        finally:
            with trio.CancelScope(shield=True):
                if self._degraded is not None:
                    await self._recover()  # a last time
                while self._has_work():
                    await self._work()
                with suppress(Trouble):
                    await self._store.close()

    async def attend(self) -> None:
        await self._store.attend(self._fail, self._found_stale)

    # What its sessions call.

    def arrived(self, held: HeldSession) -> None:
        self._pending.append(held)
        self._arrived.set()

    def more_bytes(self, size: int) -> None:
        self._pending_bytes += size
        if self._pending_bytes > PENDING_BYTES:
            self._degrade(f"it is too slow: over {PENDING_BYTES >> 20} MiB wait for it")

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
        with suppress(Unreachable), self._reached():
            return await self._store.frames(place, first, last, max_bytes)
        return ()

    def let_go(self, held: HeldSession) -> None:
        if not held.dirty or sum(other.released for other in self._held) > LEFT_BEHIND:
            self._held.discard(held)

    def _hold(self, place: Place, loaded: SessionSnapshot) -> HeldSession:
        held = HeldSession(self, place, loaded, dropping=self._degraded is not None)
        if loaded.record.ended_at is None:
            self._held.add(held)
        return held

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises `Unreachable`."""
        if self._degraded is not None:
            raise Unreachable(self._degraded)
        try:
            yield
        except Trouble as trouble:
            if trouble.is_damage:
                self._fail(trouble)
            raise Unreachable(str(trouble)) from trouble

    # The writer.

    def _has_work(self) -> bool:
        return bool(self._is_stale or self._pending or self._changed_links)

    async def _work(self) -> None:
        await (self._renew() if self._is_stale else self._flush())

    async def _flush(self) -> None:
        size, self._pending_bytes = self._pending_bytes, 0
        batch, self._pending = self._pending, []
        work = [(held.place, changes) for held in batch if (changes := held.take())]
        changed, self._changed_links = self._changed_links, []
        try:
            done = await self._store.commit(work, [(link, link.take()) for link in changed], size)
        except Stale:
            self._pending += batch  # for `_renew`, which leaves none out
            self._changed_links += changed
            self._found_stale()
            return
        except Trouble as trouble:
            self._fail(trouble)
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

    async def _recover(self) -> None:
        """Makes the store usable, and writes each session anew of which something was dropped."""
        try:
            if await self._store.make_ready():
                for held in self._held:
                    held.place.row, held.dirty = 0, True
            if self._told:  # what is kept of connections tells of less than their sessions will
                await self._outdate_links()
            while waiting := [held for held in self._held if held.dropping]:
                for held in waiting:
                    held.dropping = False  # what comes from now on is not in the snapshot
                    if held.dirty:
                        await self._write_whole(held)
        except Trouble as trouble:
            self._fail(trouble)
        else:
            if self._told:
                log.info("the journal %s is written again", self._store.shown)
            self._degraded, self._told = None, False
            for link in self._links:
                link.changed()

    def _found_stale(self) -> None:
        self._is_stale = True
        self._arrived.set()

    async def _renew(self) -> None:
        """Writes all sessions anew: the store lacks some of what it had. What is said waits for it."""
        all_held = list(dict.fromkeys((*self._held, *self._pending)))
        self._pending, self._pending_bytes = [], 0
        for held in all_held:
            held.gather()
            held.dirty = held.dirty or held.is_writing or bool(held.place.row)
            held.place.row = 0
        for link in self._links:
            link.has_row = False
        try:
            await self._store.make_ready()
            await self._outdate_links()
            for held in all_held:
                if held.dirty:
                    held.gather()  # it is in the snapshot
                    await self._write_whole(held)
                    held.wrote()
        except Trouble as trouble:
            self._fail(trouble)
            return
        log.warning(
            "the journal %s lacked what was written last. The sessions of this host are written anew",
            self._store.shown,
        )
        self._is_stale = False
        self._changed_links = list(dict.fromkeys(self._changed_links))
        for link in self._links:
            link.changed()
        self._flushes.unpark_all()

    async def _outdate_links(self) -> None:
        await self._store.outdate([link.id for link in self._links])

    async def _write_whole(self, held: HeldSession) -> None:
        snapshot = held.snapshot()
        try:
            kept = await self._store.write_whole(held.place, snapshot)
        except Unwritable as error:
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

    def _fail(self, trouble: Trouble) -> None:
        self._degrade(str(trouble))

    def _degrade(self, reason: str) -> None:
        if not self._told:
            log.error(
                "the journal %s: %s. Sessions go on in memory until it works again", self._store.shown, reason
            )
        self._degraded, self._told, self._is_stale = reason, True, False
        self._pending, self._pending_bytes = [], 0
        for held in list(self._held):
            held.drop()
        self._changed_links = []
        for link in self._links:
            link.drop()
        self._flushes.unpark_all()
        self._arrived.set()


@asynccontextmanager
async def opened(journal: DurableJournal) -> AsyncIterator[DurableJournal]:
    """At the end, what was handed over is written.

    It raises nothing for a store that cannot be used: the journal is degraded until it can.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        nursery.start_soon(journal.attend)
        try:
            yield journal
        except Exception as error:  # so that it leaves as it is, and not in the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
