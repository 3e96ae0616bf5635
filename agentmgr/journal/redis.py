"""A journal in Redis, which the hosts of a service share over the network, on whichever machine they are.

A batch of changes is one call of a script. While Redis does not answer, it is asked again for `PATIENCE_S`:
turns wait meanwhile, and what was done already is not done twice. After that the journal is degraded.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from . import redis_reading, redis_writing
from .durable import RETRY_S, DurableJournal, LinkWork, Stale, Trouble, Unwritable, opened
from .holders import instance_of
from .journal import MayOwn, SessionSnapshot, StoredFrame
from .links import OUTDATED, HeldLink
from .redis_connection import Redis, RedisAddress, RedisTrouble, Script, Word, open_redis
from .redis_keys import RENEW_S, VERSION, Keys, name_field
from .redis_leases import Lease, Written, living
from .redis_look import loses_sessions
from .redis_scripts import CLAIM, CLOSE, COMMIT, CREATE_NAMED, OPEN, OUTDATE, STALE, TAKE_LINK, WHOLE
from .writing import Place, Work

T = TypeVar("T")

PATIENCE_S = 10.0  #: for a Redis that is restarted
CLOSING_S = 2.0  #: at the end of this host
PAUSE_S = 0.1  #: between tries


class RedisStore:
    """See `Store`."""

    set_aside: Sequence[str] = ()

    def __init__(
        self, redis: Redis, keys: Keys, holder: str, *, patience_s: float, renew_s: float = RENEW_S
    ) -> None:
        self.holder = holder
        self._redis, self._keys = redis, keys
        self._patience_s = patience_s
        self._answer_s = math.inf  # for one answer, if that is less than `ANSWER_S`
        self._written = Written()
        self._last_batch = 0  # that was sent; a number is not used again for other changes
        self._lease = Lease(
            redis.address, keys, holder, self._written, patience_s=patience_s, renew_s=renew_s
        )
        self._stale: Callable[[], None] = lambda: None
        self._attended: trio.Event | None = None  # `attend` is over; None: it has not begun

    @property
    def shown(self) -> str:
        return f"{self._redis.address.shown} ({self._keys.base})"

    async def make_ready(self) -> bool:
        written = self._written
        if reason := await self._asked(lambda: loses_sessions(self._redis)):
            raise Trouble(reason)
        new = secrets.token_hex(8)
        args = (VERSION, new, self.holder, written.batch, written.claims)
        first, *rest = await self._asked(lambda: self._redis.run(OPEN, [self._keys.meta], *args))
        if first == b"newer":
            theirs = rest[0].decode()
            raise Trouble(f"it is of a newer agentmgr (layout {theirs}, here {VERSION}): upgrade this one")
        if first == b"foreign":
            raise Trouble(
                f"another program uses the key {self._keys.meta}: give this one a ?prefix=WORD of its own"
            )
        made, before = first.decode(), written.made
        written.made = made
        return before not in ("", made) or bool(before and rest[0])

    async def commit(self, work: Work, links: LinkWork, size: int) -> tuple[list[Place], list[HeldLink]]:
        places = {place.record.session_id: place for place, _ in work}
        by_id = {link.id: link for link, _ in links}
        self._last_batch = batch = self._last_batch + 1
        words: list[Word] = [batch, len(work)]
        for place, changes in work:
            commands = redis_writing.changes(self._keys, place, changes)
            more = 0
            if not place.row:
                commands = (
                    redis_writing.creation(self._keys, place.record, self.holder, place.epoch) + commands
                )
                more = redis_writing.SESSION_BYTES
            words += (place.record.session_id, place.epoch, int(not place.row))
            words += redis_writing.packed(commands, more)
        words.append(len(links))
        for link, state in links:
            what = "end" if state is None else "change" if link.has_row else "put"
            words += (link.id, what, state or "")
        lost, lost_links = await self._asked(lambda: self._write(COMMIT, *words))
        self._written.batch = batch
        for place in places.values():
            place.row = 1
        return [places[it.decode()] for it in lost], [by_id[it.decode()] for it in lost_links]

    async def write_whole(self, place: Place, snapshot: SessionSnapshot) -> bool:
        keys, id_ = self._keys, snapshot.record.session_id
        last_seq = await self._asked(lambda: redis_reading.last_seq(self._redis, keys, id_))
        # Where Redis lost what it had, it may have an older copy of it, whose name is as it was.
        commands = redis_writing.whole(keys, place, snapshot, last_seq)
        words = redis_writing.packed(commands)
        try:
            epoch = await self._claim(
                WHOLE, id_, place.epoch, int(bool(place.row)), secrets.token_hex(8), *words
            )
        except Trouble as trouble:
            if isinstance(trouble.__cause__, ValueError):
                raise Unwritable(str(trouble)) from trouble
            raise
        if epoch:
            place.row, place.epoch = 1, epoch
        return bool(epoch)

    async def outdate(self, link_ids: Sequence[str]) -> None:
        await self._claim(OUTDATE, OUTDATED, *link_ids)

    async def create_named(self, place: Place) -> str | None:
        record = place.record
        assert record.name is not None
        commands = redis_writing.creation(self._keys, record, self.holder, place.epoch)
        words = redis_writing.packed(commands, redis_writing.SESSION_BYTES)
        field = name_field(record.owner, record.name)
        found = (await self._claim(CREATE_NAMED, field, record.session_id, *words)).decode()
        if found != record.session_id:
            return str(found)
        place.row = 1
        return None

    async def take_up(
        self, session_id: str, may_own: MayOwn | None
    ) -> tuple[Place, SessionSnapshot] | str | None:
        keys = self._keys
        if may_own is not None:
            owner = await self._asked(lambda: self._redis.call("HGET", keys.session(session_id), "owner"))
            if not may_own(owner and owner.decode()):
                return None
        epoch = await self._claim(CLAIM, session_id)
        if epoch is None:
            return None
        if isinstance(epoch, bytes):
            return instance_of(epoch.decode())
        loaded = await self._asked(lambda: redis_reading.load(self._redis, keys, session_id))
        return None if loaded is None else (Place(loaded.record, 1, epoch), loaded)

    async def named(self, owner: str | None, name: str) -> str | None:
        field = name_field(owner, name)
        found = await self._asked(lambda: self._redis.call("HGET", self._keys.names, field))
        return found and str(found.decode())

    async def frames(self, place: Place, first: int, last: int, max_bytes: int) -> Sequence[StoredFrame]:
        read, id_ = redis_reading.frames, place.record.session_id
        return await self._asked(lambda: read(self._redis, self._keys, id_, first, last, max_bytes))

    async def take_link(self, link_id: str) -> str | None:
        state = await self._claim(TAKE_LINK, link_id)
        return state and str(state.decode())

    async def unfinished(self) -> Sequence[str]:
        found = await self._asked(lambda: redis_reading.unfinished(self._redis, self._keys))
        alive = await self._asked(lambda: living(self._redis, self._keys))
        return [it for it, holder in found if holder is None or holder not in alive - {self.holder}]

    async def attend(self, troubled: Callable[[Trouble], None], stale: Callable[[], None]) -> None:
        self._stale = stale
        self._attended = trio.Event()
        try:
            await self._lease.keep(lambda trouble: troubled(Trouble(str(trouble))), stale)
        finally:
            self._patience_s, self._answer_s = min(self._patience_s, CLOSING_S), CLOSING_S
            self._attended.set()

    async def close(self) -> None:
        if self._attended is not None:
            await self._attended.wait()  # else the lease might be renewed once more after this
        await self._asked(lambda: self._redis.run(CLOSE, [self._keys.meta], self.holder))

    async def _claim(self, script: Script, *args: Word) -> Any:
        """A write that is in no batch. Where the journal lacks something, that is to be written first."""

        async def ask() -> Any:
            try:
                return await self._write(script, *args)
            except Stale:
                self._stale()
                raise RedisTrouble("it lacks what was written last", passes=True) from None

        with trio.CancelScope(shield=True):  # else it may have claimed what nobody here holds
            answer = await self._asked(ask)
        self._written.claims += 1
        return answer

    async def _write(self, script: Script, *args: Word) -> Any:
        """Raises `RedisTrouble`, `Stale`."""
        written = self._written
        head = (written.made, self.holder, written.batch, written.claims)
        answer = await self._redis.run(script, [self._keys.meta], *head, *args)
        if answer == STALE:
            raise Stale
        return answer

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Raises `Trouble`."""
        give_up_at = trio.current_time() + self._patience_s
        while True:
            try:
                with trio.fail_after(self._answer_s):
                    return await ask()
            except trio.TooSlowError as error:
                raise Trouble("it does not answer") from error
            except UnicodeEncodeError as error:
                raise Trouble(str(error)) from error
            except (ValueError, LookupError, TypeError) as error:  # of what others wrote there
                raise Trouble(f"what it has is damaged: {error!r}") from None
            except RedisTrouble as trouble:
                if not trouble.passes or trio.current_time() >= give_up_at:
                    raise Trouble(str(trouble)) from trouble
            await trio.sleep(PAUSE_S)


@asynccontextmanager
async def open_journal(
    url: str,
    service_id: str,
    instance_id: str,
    *,
    run: str = "",
    patience_s: float = PATIENCE_S,
    retry_s: float = RETRY_S,
    renew_s: float = RENEW_S,
) -> AsyncIterator[DurableJournal]:
    """The journal of a service in the Redis at `url`, see `RedisAddress.parse`, made when it is absent.

    `run` tells the runs of an instance apart; without it each is another one. For what cannot be reached see
    `opened`. Raises `InvalidRequest`.
    """
    address = RedisAddress.parse(url)
    holder = f"{instance_id}:{run or secrets.token_hex(8)}"
    async with open_redis(address) as redis:
        store = RedisStore(
            redis, Keys(service_id, address.prefix), holder, patience_s=patience_s, renew_s=renew_s
        )
        async with opened(DurableJournal(store, retry_s)) as journal:
            yield journal
