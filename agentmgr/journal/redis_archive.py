"""An `Archive` of the journals in one Redis."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from ..errors import AgentManagerError, StorageError
from ..models.sessions import SessionState
from . import archive, holders, redis_leases, redis_reading
from .archive import (
    EVENT_BYTES,
    EVENTS_FOUND,
    LAST_NUMBER,
    ArchiveFigures,
    Found,
    Limits,
    OpenQuestion,
    Pruned,
    Query,
    SaidMessage,
    SessionPage,
    SessionSummary,
)
from .journal import Frame, Question, SessionSnapshot, StoredFrame, TurnStatus
from .redis_archive_scripts import ERASE, ERASED_AT_ONCE, FEW, LOOKED_AT, PAGE, PRUNE
from .redis_connection import Redis, RedisTrouble
from .redis_keys import VERSION, Keys

log = logging.getLogger(__name__)

T = TypeVar("T")

LAST_TIE = chr(0x10FFFF)  #: behind each session id
ENTRIES_READ = 256


class RedisArchive:
    """See `Archive`. `connected` has the connection within its block."""

    node_id = None

    def __init__(self, label: str, connected: Callable[[], AbstractAsyncContextManager[Redis]]) -> None:
        self.key = self.label = label
        self._connected = connected

    async def sessions(self, query: Query, cursors: Mapping[str, str | None]) -> Found[SessionPage]:
        places = {
            service_id: archive.moment(cursor) if cursor else None for service_id, cursor in cursors.items()
        }
        return await self._each(
            cursors, lambda redis, keys: _page(redis, keys, query, places[keys.service_id])
        )

    async def session(
        self, services: Collection[str], session_id: str
    ) -> Found[tuple[SessionSummary, SessionSnapshot] | None]:
        async def find(redis: Redis, keys: Keys) -> tuple[SessionSummary, SessionSnapshot] | None:
            found = await redis.run(FEW, [keys.meta], session_id)
            snapshot = await redis_reading.load(redis, keys, session_id, with_frames=False) if found else None
            return None if snapshot is None else (_summary(found[0]), snapshot)

        async with self._asked() as redis:
            several = [_keys(redis, service_id) for service_id in services]
            has_it = await redis.pipeline([("EXISTS", keys.session(session_id)) for keys in several])
        among = [keys.service_id for keys, has in zip(several, has_it, strict=True) if has]
        return await self._each(among, find)

    async def questions(self, services: Collection[str]) -> Found[Sequence[OpenQuestion]]:
        return await self._each(services, _questions)

    async def has_unfinished(self, services: Collection[str]) -> Found[bool]:
        async def look(redis: Redis, keys: Keys) -> bool:
            return bool(await redis.call("ZCARD", keys.unfinished))

        return await self._each(services, look)

    async def figures(self, services: Collection[str]) -> Found[ArchiveFigures]:
        async def count(redis: Redis, keys: Keys) -> ArchiveFigures:
            sessions, questions, size = await redis.pipeline(
                [("ZCARD", keys.by_use), ("ZCARD", keys.asked), ("HGET", keys.meta, "bytes")]
            )
            return ArchiveFigures(sessions, questions, int(size or 0))

        return await self._each(services, count)

    async def prune(self, limits: Mapping[str, Limits], *, now: float | None = None) -> Found[Pruned]:
        at = time.time() if now is None else now
        return await self._each(limits, lambda redis, keys: _prune(redis, keys, limits[keys.service_id], at))

    async def events(
        self, service_id: str, session_id: str, since: int = 0, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[StoredFrame] | None:
        async with self._of(service_id) as (redis, keys):
            if not await redis.call("EXISTS", keys.session(session_id)):
                return None
            first = min(since + 1, LAST_NUMBER)
            return await redis_reading.frames(redis, keys, session_id, first, LAST_NUMBER, max_bytes)

    async def events_with(self, service_id: str, session_id: str, text: str) -> Sequence[Frame]:
        wanted, found, after = text.encode(), list[Frame](), "-"
        async with self._of(service_id) as (redis, keys):
            while len(found) < EVENTS_FOUND:
                entries = await redis.call(
                    "XRANGE", keys.events(session_id), after, "+", "COUNT", ENTRIES_READ
                )
                several = [frame for entry in entries for frame in redis_reading.unpacked(entry)]
                whole = await redis_reading.whole(redis, keys, session_id, several)
                found += (frame for frame in whole if wanted in frame.line)
                if len(entries) < ENTRIES_READ:
                    break
                after = f"({entries[-1][0].decode()}"
        return found[:EVENTS_FOUND]

    async def messages(
        self, service_id: str, session_id: str, after: int, to: int
    ) -> Mapping[int, SaidMessage]:
        found: dict[int, SaidMessage] = {}
        numbers = range(after + 1, to + 1)
        async with self._of(service_id) as (redis, keys):
            for start in range(0, len(numbers), ENTRIES_READ):
                some = numbers[start : start + ENTRIES_READ]
                heads = await redis.call("HMGET", keys.turns(session_id), *some)
                for number, head in zip(some, heads, strict=True):
                    if head is not None:
                        (step_id, accepted_at), message = redis_reading.head(head)
                        found[number] = SaidMessage(step_id, message, accepted_at)
        return found

    async def turn_that_runs(self, service_id: str, session_id: str) -> int:
        async with self._of(service_id) as (redis, keys):
            members = await redis.call(
                "ZRANGE", keys.unfinished, f"[{session_id} ", f"({session_id}!", "BYLEX"
            )
            for number in sorted(int(member.rpartition(b" ")[2]) for member in members):
                begun = await redis.call("HGET", keys.turns(session_id), f"{number}:begun")
                if begun is not None and json.loads(begun)[0] == TurnStatus.RUNNING:
                    return number
        return 0

    async def turn_of(self, service_id: str, session_id: str, seq: int) -> int:
        async with self._of(service_id) as (redis, keys):
            entries = await redis.call("XRANGE", keys.events(session_id), str(seq), "+", "COUNT", 1)
        return redis_reading.unpacked(entries[0])[0].turn if entries else 0

    async def erase(self, service_id: str, session_id: str) -> bool:
        async with self._of(service_id) as (redis, keys):
            return bool(await redis.run(ERASE, [keys.meta], session_id))

    async def remove(self, service_id: str) -> None:
        async with self._of(service_id) as (redis, keys):
            while some := await redis.call("ZRANGE", keys.by_use, 0, ERASED_AT_ONCE - 1):
                await redis.run(ERASE, [keys.meta], *some)
                await redis.call("ZREM", keys.by_use, *some)  # also what had a place there, and nothing else
            known = await redis.call("ZRANGE", keys.leases, 0, -1)
            of_holders = [keys.links_of(holder.decode()) for holder in known]
            rest = (keys.names, keys.unfinished, keys.asked, keys.leases, keys.batches, keys.links, keys.meta)
            await redis.call("UNLINK", *of_holders, *rest)

    async def _each(self, services: Iterable[str], do: Callable[[Redis, Keys], Awaitable[T]]) -> Found[T]:
        """What `do` gives for each of these that has a journal there."""
        found: dict[str, T] = {}
        unreadable: dict[str, str] = {}
        async with self._asked() as redis:
            several = [_keys(redis, service_id) for service_id in services]
            versions = await redis.pipeline([("HGET", keys.meta, "version") for keys in several])
            for keys, version in zip(several, versions, strict=True):
                if version is None:
                    continue
                if not version.isdigit():
                    unreadable[keys.service_id] = f"another program uses the key {keys.meta} in {self.label}"
                    continue
                if int(version) > VERSION:
                    unreadable[keys.service_id] = (
                        f"its journal in {self.label} was written by a newer agentmgr: upgrade to read it"
                    )
                    continue
                found[keys.service_id] = await do(redis, keys)
        return Found(found, unreadable)

    @asynccontextmanager
    async def _of(self, service_id: str) -> AsyncIterator[tuple[Redis, Keys]]:
        async with self._asked() as redis:
            yield redis, _keys(redis, service_id)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[Redis]:
        """Raises `StorageError`."""
        try:
            async with self._connected() as redis:
                yield redis
        except RedisTrouble as trouble:
            raise StorageError(f"the journal in {self.label}: {trouble}") from trouble
        except AgentManagerError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # of what others wrote there
            log.debug("the journal in %s", self.label, exc_info=True)
            raise StorageError(f"the journal in {self.label} has damaged entries: {error!r}") from error


def _keys(redis: Redis, service_id: str) -> Keys:
    return Keys(service_id, redis.address.prefix)


async def _page(redis: Redis, keys: Keys, query: Query, place: tuple[float, str] | None) -> SessionPage:
    at, tie = (math.inf, "") if place is None else place
    if place is None or tie == str(LAST_NUMBER):
        tie = LAST_TIE
    wanted = query.limit + 1
    items: list[SessionSummary] = []
    if query.state in (SessionState.RUNNING, SessionState.ASKING):  # few are
        members = await redis.call(
            "ZRANGE", keys.unfinished if query.state is SessionState.RUNNING else keys.asked, 0, -1
        )
        ids = sorted({member.partition(b" ")[0] for member in members})
        for start in range(0, len(ids), LOOKED_AT):
            found = await redis.run(FEW, [keys.meta], *ids[start : start + LOOKED_AT])
            items += (one for one in map(_summary, found) if _fits(one, query))
        items.sort(key=_order, reverse=True)
        items = [one for one in items if _order(one) < (at, tie)][:wanted]
    while query.state not in (SessionState.RUNNING, SessionState.ASKING):
        args = (query.owner or "", repr(at), tie, wanted - len(items), query.state or "", query.text or "")
        found, *rest = await redis.run(PAGE, [keys.meta], *args)
        items += map(_summary, found)
        if not rest or len(items) == wanted:
            break
        at, tie = float(rest[0]), rest[1].decode()
    more = len(items) == wanted
    items = items[: query.limit]
    return SessionPage(items, items[-1].place if more else None)


def _order(one: SessionSummary) -> tuple[float, str]:
    return one.last_used_at, one.session_id


def _fits(one: SessionSummary, query: Query) -> bool:
    text = (query.text or "").lower()
    return (
        one.state == query.state
        and query.owner in (None, one.owner)
        and (text in one.session_id or text in (one.name or "").lower())
    )


async def _questions(redis: Redis, keys: Keys) -> Sequence[OpenQuestion]:
    members = await redis.call("ZRANGE", keys.asked, 0, -1)
    pairs = [member.decode().split(" ", 1) for member in members]
    living = await redis_leases.living(redis, keys)
    rows = await redis.pipeline(
        [("HMGET", keys.session(session_id), "owner", "name", "holder") for session_id, _ in pairs]
    )
    texts = await redis.pipeline([("HGET", keys.questions(session_id), step) for session_id, step in pairs])
    found = []
    for (session_id, step_id), row, text in zip(pairs, rows, texts, strict=True):
        if text is None:
            continue
        owner, name, holder = (it and it.decode() for it in row)
        (asked_at,), content = redis_reading.head(text)
        instance_id = holders.instance_of(holder) if holder in living else None
        found.append(OpenQuestion(session_id, owner, name, instance_id, Question(step_id, content, asked_at)))
    return found


async def _prune(redis: Redis, keys: Keys, limits: Limits, now: float) -> Pruned:
    horizon = repr(now - limits.retention_s) if limits.retention_s else "-inf"
    unused: list[str] = []
    for_room: list[str] = []
    for also_held in (0, 1):
        stay, more = 0, True
        while more:
            args = (horizon, limits.max_bytes, also_held, stay)
            count, erased, stay, more = await redis.run(PRUNE, [keys.meta], *args)
            ids = [it.decode() for it in erased]
            unused += ids[:count]
            for_room += ids[count:]
    return Pruned(tuple(unused), tuple(for_room))


def _summary(found: Sequence[Any]) -> SessionSummary:
    """Of what `described` gives."""
    texts: list[Any] = [None if it is None else it.decode() for it in found]
    session_id, used_at, state, owner, name, holder, turns, *rest = texts
    input_tokens, output_tokens, created_at, ended_at, end_reason = rest
    return SessionSummary(
        session_id,
        owner,
        name,
        SessionState(state),
        None if holder is None else holders.instance_of(holder),
        f"{float(used_at)!r}:{session_id}",
        int(turns or 0),
        int(input_tokens or 0),
        int(output_tokens or 0),
        float(created_at),
        float(used_at),
        None if ended_at is None else float(ended_at),
        end_reason,
    )
