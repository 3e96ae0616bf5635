"""The sessions of a database's services, as their journals have them, whether anything runs or not."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import asdict, evolve

from ..agent.events import expand
from ..codec import to_plain
from ..core import lookup
from ..errors import SessionNotFound, StorageError
from ..journal import archive, copies
from ..journal.archive import OpenQuestion, SaidMessage, SessionSummary
from ..journal.journal import Question, SessionSnapshot, TurnRecord
from ..models import Event, ServiceSpec
from ..models.sessions import (
    SHOWN_OF_AN_ID,
    SessionDetail,
    SessionInfo,
    SessionPage,
    SessionQuestion,
    SessionState,
    SessionTurn,
)
from ..process.paths import RuntimePaths
from ..protocol import MESSAGE, SESSION_END, TOOL_CALL
from ..storage.store import Store
from ..visible import json_text

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 0.1  #: between looks at a journal for what is new, while a session is watched
PRUNE_EVERY_S = 60.0

Send = Callable[[Sequence[tuple[int | None, bytes]]], Awaitable[None]]
"""Takes events: a number (None: a person's message), and the JSON text that the session's clients get."""


class StoredSessions:
    """Reads the journals `DIRECTORY/SERVICE_ID.db`, and erases what is in them."""

    def __init__(self, directory: Path, services: Callable[[], Iterable[ServiceSpec]]) -> None:
        self._directory = directory
        self._services = services
        self._limiter = trio.CapacityLimiter(4)

    # To read

    async def list(
        self,
        service: str | None = None,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        text: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> SessionPage:
        """Those of one service or of all, the last used first; `text`: in their name or id.

        Raises `ServiceNotFound`, `InvalidRequest`.
        """
        read = partial(archive.sessions, state=state, owner=owner, text=text, limit=limit)
        if service is None:
            return await self._in_thread(self._of_all, read, limit, cursor)
        spec = lookup.service(self._services(), service)
        found = await self._in_thread(partial(read, cursor=cursor), self.journal(spec))
        items = tuple(_info(spec, summary) for summary in found.items)
        return SessionPage(items, limit, found.next_cursor)

    def _of_all(
        self, read: Callable[..., archive.SessionPage], limit: int, cursor: str | None
    ) -> SessionPage:
        """A page of all services. Those that were used at one moment are ordered by their services' ids."""
        found: list[tuple[ServiceSpec, SessionSummary]] = []
        unreadable: list[str] = []
        more = False
        for spec in sorted(self._services(), key=lambda spec: spec.service_id):
            try:
                page = read(self.journal(spec), cursor=archive.place_in(spec.service_id, cursor))
            except StorageError as error:  # those of the other services are shown all the same
                logger.warning("the sessions of %s cannot be read: %s", spec.name, error)
                unreadable.append(spec.name)
                continue
            found += [(spec, summary) for summary in page.items]
            more = more or page.next_cursor is not None
        found.sort(key=lambda one: -one[1].last_used_at)
        shown, more = found[:limit], more or len(found) > limit
        next_cursor = f"{shown[-1][1].place}:{shown[-1][0].service_id}" if shown and more else None
        return SessionPage(tuple(_info(*one) for one in shown), limit, next_cursor, tuple(unreadable))

    async def get(self, session_id: str) -> SessionDetail:
        """One, with its last turns. Raises `SessionNotFound`."""
        spec, summary, snapshot = await self.find(session_id)
        calls = await self._in_thread(
            archive.events_with, self.journal(spec), session_id, json.dumps(TOOL_CALL)
        )
        tools: dict[int, list[str]] = {}
        for frame in calls:
            event = json.loads(frame.line) if frame.line.startswith(b"{") else {}
            if event.get("event") == TOOL_CALL and isinstance(event["content"], dict):
                tools.setdefault(frame.turn, []).append(str(event["content"].get("tool")))
        info = _info(spec, summary)
        return SessionDetail(
            **asdict(info, recurse=False),
            history=tuple(_turn(turn, tools.get(turn.number, ())) for turn in snapshot.turns),
            questions=tuple(_question(spec, summary, question) for question in snapshot.questions),
            session_state=json.loads(snapshot.record.state),
        )

    async def questions(self, of: Iterable[ServiceSpec] | None = None) -> tuple[SessionQuestion, ...]:
        """All that wait for a person, of these services or every one, the oldest first."""
        found: list[SessionQuestion] = []
        for spec in self._services() if of is None else of:
            try:
                open_ones = await self._in_thread(archive.questions, self.journal(spec))
            except StorageError as error:  # those of the other services wait all the same
                logger.warning("the questions of %s cannot be read: %s", spec.name, error)
                continue
            found += [_question(spec, one, one.question) for one in open_ones]
        return tuple(sorted(found, key=lambda question: question.asked_at))

    async def pass_on_events(
        self, session_id: str, send: Send, *, since: int = 0, following: bool = True, messages: bool = False
    ) -> None:
        """Sends all events after the number `since`; `following`: then each new one, to the session's end.

        With `messages`, also the `user.message` that began each turn, before its first event. Raises
        `SessionNotFound`.
        """
        spec, summary, _ = await self.find(session_id)
        path, ended = self.journal(spec), summary.state is SessionState.ENDED
        read = running = 0  # numbers of turns
        said: dict[int, SaidMessage] = {}  # those that were read, until the first event of their turn
        if messages and since:
            read = await self._in_thread(archive.turn_of, path, session_id, since)
        while True:
            if messages:  # before its events are looked for: none of an earlier turn is to come after it
                running = await self._in_thread(archive.turn_that_runs, path, session_id)
            found = await self._in_thread(archive.events, path, session_id, since)
            newest = max((frame.turn for frame in found), default=0) if found else running
            if messages and newest > read:
                said.update(await self._in_thread(archive.messages, path, session_id, read, newest))
                read = newest
            batch: list[tuple[int | None, bytes]] = []
            for frame in found or ():
                if (message := said.pop(frame.turn, None)) is not None:
                    batch.append((None, _message(session_id, message)))
                text = expand(frame.line, frame.seq, session_id=session_id, step_id=frame.step_id)
                batch.append((frame.seq, text))
                since = frame.seq
            if not found and (message := said.pop(running, None)) is not None:
                batch.append((None, _message(session_id, message)))
            if batch:
                await send(batch)
            if found is None or (not found and (ended or not following)):
                return
            if found:
                ended = _ends(found[-1].line)
            else:
                await trio.sleep(LOOK_S)

    @asynccontextmanager
    async def events(
        self, session_id: str, *, since: int = 0, follow: bool = True, messages: bool = False
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The same as an iterator of events. Raises `SessionNotFound`."""
        await self.find(session_id)

        async def produce(sender: trio.MemorySendChannel[dict[str, Any]]) -> None:
            async def send(events: Sequence[tuple[int | None, bytes]]) -> None:
                for _, text in events:
                    await sender.send(json.loads(text))

            await self.pass_on_events(session_id, send, since=since, following=follow, messages=messages)

        async with _iterated(produce) as events:
            yield events

    @asynccontextmanager
    async def export(self, session_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """What `pass_on_export` sends, as an iterator. Raises `SessionNotFound`."""
        await self.find(session_id)

        async def produce(sender: trio.MemorySendChannel[bytes]) -> None:
            await self.pass_on_export(session_id, sender.send)

        async with _iterated(produce) as lines:
            yield lines

    async def pass_on_export(self, session_id: str, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends all that is kept of a session as lines of JSON, each with its `kind`: the session, its turns,
        its events. Raises `SessionNotFound`.
        """
        detail = await self.get(session_id)
        await send(_line("session", evolve(detail, history=())))
        for turn in detail.history:
            await send(_line("turn", turn))

        async def pass_on(events: Sequence[tuple[int | None, bytes]]) -> None:
            await send(b"".join(b'{"kind":"event",' + text[1:] + b"\n" for _, text in events))

        await self.pass_on_events(session_id, pass_on, following=False)

    async def find(self, session_id: str) -> tuple[ServiceSpec, SessionSummary, SessionSnapshot]:
        """Raises `SessionNotFound`; `StorageError` where it may be in a journal that cannot be read."""
        unreadable: StorageError | None = None
        for spec in self._services():
            try:
                found = await self._in_thread(archive.session, self.journal(spec), session_id)
            except StorageError as error:
                unreadable = error
                continue
            if found is not None:
                return spec, *found
        raise unreadable or not_found(session_id)

    async def count(self, spec: ServiceSpec) -> int:
        return (await self._in_thread(archive.figures, self.journal(spec))).sessions

    async def unfinished(self, specs: Iterable[ServiceSpec]) -> frozenset[str]:
        """The ids of those of these services that have turns which no instance has finished."""

        def look() -> Iterator[str]:
            asked = {spec.service_id for spec in specs}
            for spec in self._with_journals():
                try:
                    if spec.service_id in asked and archive.has_unfinished(self.journal(spec)):
                        yield spec.service_id
                except StorageError as error:  # its host says so too, when a client comes
                    logger.warning("the turns of %s cannot be read: %s", spec.name, error)

        return await self._in_thread(lambda: frozenset(look()))

    # To erase

    async def erase(self, session_id: str) -> None:
        """Erases it with all that was said in it. An instance that has it loses it at its next event.

        Raises `SessionNotFound`.
        """
        spec, _, _ = await self.find(session_id)
        if not await self._in_thread(archive.erase, self.journal(spec), session_id):
            raise not_found(session_id)

    async def remove(self, spec: ServiceSpec) -> None:
        """Removes the journal of a service that has no instances any more."""
        await self._in_thread(copies.remove, self.journal(spec))

    async def prune(self, announce: Callable[[Event], object]) -> None:
        """Erases what each service no longer keeps, and announces how many sessions that were."""
        for spec in await self._in_thread(self._with_journals):
            config = spec.config
            prune = partial(
                archive.prune,
                retention_s=config.session_retention,
                max_bytes=config.sessions_max_bytes,
            )
            try:
                pruned = await self._in_thread(prune, self.journal(spec))
            except StorageError as error:  # a host says it too, and sets aside what is damaged
                logger.warning("sessions of %s are not pruned now: %s", spec.name, error)
                continue
            unused, for_room = len(pruned.unused), len(pruned.for_room)
            if unused or for_room:
                detail = {"unused": unused, "for_room": for_room}
                logger.info("%s: erased %d sessions unused, %d for room", spec.name, unused, for_room)
                announce(Event("sessions.pruned", service_id=spec.service_id, detail=detail))

    def _with_journals(self) -> Sequence[ServiceSpec]:
        """Those of the services that have one: of a thousand that start on demand, few do."""
        try:
            names = set(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        return [spec for spec in self._services() if f"{spec.service_id}.db" in names]

    async def keep_pruned(self, announce: Callable[[Event], object]) -> None:
        """Until cancelled."""
        while True:
            await self.prune(announce)
            await trio.sleep(PRUNE_EVERY_S)

    async def back_up(self, store: Store, destination: Path) -> None:
        """Copies the database to `destination`, and each journal, as it is at one moment, to where those of a
        database of that name are, with the CA of its cluster. Leaves nothing there when it fails. Raises
        `Conflict`, `StorageError`.
        """
        await store.backup(destination)
        done = False
        try:
            journals = [path for spec in self._services() if (path := self.journal(spec)).exists()]
            await self._in_thread(copies.back_up, journals, RuntimePaths.of(destination).sessions)
            if (cluster := self._directory.with_name("cluster")).exists():
                from .. import ca  # here: one machine has none

                await self._in_thread(ca.back_up, cluster, RuntimePaths.of(destination).cluster)
            done = True
        finally:
            if not done:
                destination.unlink(missing_ok=True)  # noqa: ASYNC240  # at once, also when cancelled

    def journal(self, spec: ServiceSpec) -> Path:
        return self._directory / f"{spec.service_id}.db"

    async def _in_thread(self, do: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(do, *args, limiter=self._limiter)


@asynccontextmanager
async def _iterated(
    produce: Callable[[trio.MemorySendChannel[T]], Awaitable[None]],
) -> AsyncIterator[AsyncIterator[T]]:
    """What `produce` sends."""
    sender, receiver = trio.open_memory_channel[T](0)

    async def run() -> None:
        async with sender:
            await produce(sender)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield receiver
        nursery.cancel_scope.cancel()


def not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"no session has the id {session_id!r}: `agentmgr sessions` lists them")


def shortened(info: SessionInfo) -> SessionInfo:
    """As who may not speak in it sees it: of what gives access to a session, neither id nor name."""
    return evolve(info, session_id=_short(info.session_id), name=info.name if info.owner else None)


def without_content(question: SessionQuestion) -> SessionQuestion:
    """The same for a question."""
    name = question.name if question.owner else None
    return evolve(question, session_id=_short(question.session_id), name=name, step_id="", content=None)


def _short(session_id: str) -> str:
    return session_id[:SHOWN_OF_AN_ID] + "…"


def _info(spec: ServiceSpec, summary: SessionSummary) -> SessionInfo:
    return SessionInfo(
        session_id=summary.session_id,
        service=spec.name,
        name=summary.name,
        owner=summary.owner,
        state=summary.state,
        instance_id=summary.instance_id,
        turns=summary.turns,
        input_tokens=summary.input_tokens,
        output_tokens=summary.output_tokens,
        created_at=_moment(summary.created_at),
        last_used_at=_moment(summary.last_used_at),
        ended_at=_perhaps(summary.ended_at),
        end_reason=summary.end_reason,
    )


def _turn(turn: TurnRecord, tools: Iterable[str]) -> SessionTurn:
    message, answer = json.loads(turn.message), json.loads(turn.answer or "{}")
    return SessionTurn(
        number=turn.number,
        step_id=turn.step_id,
        message=message.get("content"),
        metadata=message.get("metadata") or {},
        status=turn.status,
        attempts=turn.attempts,
        accepted_at=_moment(turn.accepted_at),
        started_at=_perhaps(turn.started_at),
        ended_at=_perhaps(turn.ended_at),
        ended_by=turn.ended_by,
        answer=answer.get("content"),
        incomplete=bool(answer.get("incomplete")),
        tools=tuple(tools),
    )


def _question(spec: ServiceSpec, whose: SessionSummary | OpenQuestion, question: Question) -> SessionQuestion:
    return SessionQuestion(
        session_id=whose.session_id,
        service=spec.name,
        name=whose.name,
        owner=whose.owner,
        instance_id=whose.instance_id,
        step_id=question.step_id,
        content=json.loads(question.content),
        asked_at=_moment(question.asked_at),
    )


def _message(session_id: str, said: SaidMessage) -> bytes:
    head = {"event": MESSAGE, "session_id": session_id, "step_id": said.step_id}
    at = _moment(said.accepted_at).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json_text({**head, "timestamp": at, **json.loads(said.message)}, indent=None).encode()


def _ends(line: bytes) -> bool:
    """Whether this is the last event of its session."""
    return line.startswith(b"{") and json.loads(line).get("event") == SESSION_END


def _line(kind: str, value: SessionDetail | SessionTurn) -> bytes:
    return (json_text({"kind": kind, **to_plain(value)}) + "\n").encode()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _perhaps(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
