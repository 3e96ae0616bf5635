"""The sessions of a database's services, as their journals have them, whether anything runs or not."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from attrs import asdict, evolve

from ..agent.events import expand
from ..core import lookup
from ..core.affinity import named_node
from ..errors import StorageError
from ..journal import archive, copies
from ..journal.archive import SaidMessage, SessionSummary
from ..journal.journal import SessionSnapshot
from ..models import Event, ServiceSpec
from ..models.sessions import (
    SessionDetail,
    SessionPage,
    SessionQuestion,
    SessionState,
)
from ..process.paths import RuntimePaths
from ..protocol import TOOL_CALL
from ..storage.store import Store
from .session_views import ends_session, export_line, info_of, message_event, not_found, question_of, turn_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 0.1  #: between looks at a journal for what is new, while a session is watched
PRUNE_EVERY_S = 60.0

Send = Callable[[Sequence[tuple[int | None, bytes]]], Awaitable[None]]
"""Takes events: a number (None: a person's message), and the JSON text that the session's clients get."""


class SessionsOfNodes(Protocol):
    """What nodes keep (`cluster.remote_sessions`); `do` is a function of `journal.archive`."""

    def node_ids(self) -> Sequence[str]: ...

    def name(self, node_id: str) -> str: ...

    async def read(
        self,
        node_id: str,
        do: Callable[..., Any],
        *args: object,
        of: Mapping[str, Mapping[str, object]] | None = None,
        **options: object,
    ) -> tuple[dict[str, Any], Mapping[str, str]]: ...

    def post(self, do: Callable[..., Any], service_id: str) -> None: ...


class StoredSessions:
    """Reads the journals `DIRECTORY/SERVICE_ID.db`, and those of nodes, and erases what is in them.

    The id of a session says on which node its journal is.
    """

    def __init__(
        self,
        directory: Path,
        services: Callable[[], Iterable[ServiceSpec]],
        nodes: SessionsOfNodes | None = None,
    ) -> None:
        """`nodes`: None without a cluster."""
        self._directory = directory
        self._services = services
        self._nodes = nodes
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
        options: dict[str, Any] = {"state": state, "owner": owner, "text": text, "limit": limit}
        read = partial(archive.sessions, **options)
        services = list(self._services())
        specs = services if service is None else [lookup.service(services, service)]
        if self._nodes is not None:
            return await self._of_cluster(self._nodes, specs, options, cursor)
        if service is None:
            return await self._in_thread(self._of_all, read, limit, cursor)
        (spec,) = specs
        found = await self._in_thread(partial(read, cursor=cursor), self.journal(spec))
        items = tuple(info_of(spec, summary) for summary in found.items)
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
        return SessionPage(tuple(info_of(*one) for one in shown), limit, next_cursor, tuple(unreadable))

    async def _of_cluster(
        self,
        nodes: SessionsOfNodes,
        specs: Sequence[ServiceSpec],
        options: Mapping[str, Any],
        cursor: str | None,
    ) -> SessionPage:
        """A page of these services on all machines; what cannot be read is named, and left out."""
        by_id = {spec.service_id: spec for spec in specs}
        found: list[tuple[str, ServiceSpec, SessionSummary]] = []
        unreadable: list[str] = []
        more = False

        def add(key: str, spec: ServiceSpec, page: archive.SessionPage) -> None:
            nonlocal more
            found.extend((key, spec, summary) for summary in page.items)
            more = more or page.next_cursor is not None

        for spec in await self._in_thread(self._with_journals):
            if spec.service_id in by_id:
                read = partial(archive.sessions, cursor=archive.place_in(spec.service_id, cursor), **options)
                try:
                    add(spec.service_id, spec, await self._in_thread(read, self.journal(spec)))
                except StorageError as error:
                    logger.warning("the sessions of %s cannot be read: %s", spec.name, error)
                    unreadable.append(spec.name)
        for node_id in nodes.node_ids():
            keys = {service_id: f"{service_id}@{node_id}" for service_id in by_id}
            of = {it: {"cursor": archive.place_in(key, cursor)} for it, key in keys.items()}
            try:
                pages, failed = await nodes.read(node_id, archive.sessions, of=of, **options)
            except StorageError as error:
                logger.warning("%s", error)
                unreadable.append(f"node {nodes.name(node_id)}")
                continue
            for service_id, page in pages.items():
                add(keys[service_id], by_id[service_id], page)
            unreadable += (f"{by_id[it].name} on node {nodes.name(node_id)}" for it in failed)
        found.sort(key=lambda one: (-one[2].last_used_at, one[0]))
        limit = options["limit"]
        shown, more = found[:limit], more or len(found) > limit
        next_cursor = f"{shown[-1][2].place}:{shown[-1][0]}" if shown and more else None
        items = tuple(info_of(spec, summary) for _, spec, summary in shown)
        return SessionPage(items, limit, next_cursor, tuple(unreadable))

    async def get(self, session_id: str) -> SessionDetail:
        """One, with its last turns. Raises `SessionNotFound`."""
        spec, summary, snapshot = await self.find(session_id)
        calls = await self._in_journal(archive.events_with, spec, session_id, json.dumps(TOOL_CALL))
        tools: dict[int, list[str]] = {}
        for frame in calls:
            event = json.loads(frame.line) if frame.line.startswith(b"{") else {}
            if event.get("event") == TOOL_CALL and isinstance(event["content"], dict):
                tools.setdefault(frame.turn, []).append(str(event["content"].get("tool")))
        info = info_of(spec, summary)
        return SessionDetail(
            **asdict(info, recurse=False),
            history=tuple(turn_of(turn, tools.get(turn.number, ())) for turn in snapshot.turns),
            questions=tuple(question_of(spec, summary, question) for question in snapshot.questions),
            session_state=json.loads(snapshot.record.state),
        )

    async def questions(self, of: Iterable[ServiceSpec] | None = None) -> tuple[SessionQuestion, ...]:
        """All that wait for a person, of these services or every one, the oldest first."""
        found: list[SessionQuestion] = []
        specs = tuple(self._services() if of is None else of)
        for spec in specs:
            try:
                open_ones = await self._in_thread(archive.questions, self.journal(spec))
            except StorageError as error:  # those of the other services wait all the same
                logger.warning("the questions of %s cannot be read: %s", spec.name, error)
                continue
            found += [question_of(spec, one, one.question) for one in open_ones]
        async for by_spec in self._on_nodes(archive.questions, specs):
            found += [question_of(spec, one, one.question) for spec, ones in by_spec for one in ones]
        return tuple(sorted(found, key=lambda question: question.asked_at))

    async def pass_on_events(
        self, session_id: str, send: Send, *, since: int = 0, following: bool = True, messages: bool = False
    ) -> None:
        """Sends all events after the number `since`; `following`: then each new one, to the session's end.

        With `messages`, also the `user.message` that began each turn, before its first event. Raises
        `SessionNotFound`.
        """
        spec, summary, _ = await self.find(session_id)
        ended = summary.state is SessionState.ENDED
        read = running = 0  # numbers of turns
        said: dict[int, SaidMessage] = {}  # those that were read, until the first event of their turn
        if messages and since:
            read = await self._in_journal(archive.turn_of, spec, session_id, since)
        while True:
            if messages:  # before its events are looked for: none of an earlier turn is to come after it
                running = await self._in_journal(archive.turn_that_runs, spec, session_id)
            found = await self._in_journal(archive.events, spec, session_id, since)
            newest = max((frame.turn for frame in found), default=0) if found else running
            if messages and newest > read:
                said.update(await self._in_journal(archive.messages, spec, session_id, read, newest))
                read = newest
            batch: list[tuple[int | None, bytes]] = []
            for frame in found or ():
                if (message := said.pop(frame.turn, None)) is not None:
                    batch.append((None, message_event(session_id, message)))
                text = expand(frame.line, frame.seq, session_id=session_id, step_id=frame.step_id)
                batch.append((frame.seq, text))
                since = frame.seq
            if not found and (message := said.pop(running, None)) is not None:
                batch.append((None, message_event(session_id, message)))
            if batch:
                await send(batch)
            if found is None or (not found and (ended or not following)):
                return
            if found:
                ended = ends_session(found[-1].line)
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
        await send(export_line("session", evolve(detail, history=())))
        for turn in detail.history:
            await send(export_line("turn", turn))

        async def pass_on(events: Sequence[tuple[int | None, bytes]]) -> None:
            await send(b"".join(b'{"kind":"event",' + text[1:] + b"\n" for _, text in events))

        await self.pass_on_events(session_id, pass_on, following=False)

    async def find(self, session_id: str) -> tuple[ServiceSpec, SessionSummary, SessionSnapshot]:
        """Raises `SessionNotFound`; `StorageError` where it may be in a journal that cannot be read."""
        unreadable: StorageError | None = None
        if self._nodes is not None and (node_id := named_node(session_id)):
            there, failed = await self._nodes.read(node_id, archive.session, session_id)
            for spec in self._services():
                if (one := there.get(spec.service_id)) is not None:
                    return spec, *one
            if failed:
                raise StorageError(next(iter(failed.values())))
            raise not_found(session_id)
        for spec in self._services():
            try:
                found = await self._in_thread(archive.session, self.journal(spec), session_id)
            except StorageError as error:
                unreadable = error
                continue
            if found is not None:
                return spec, *found
        raise unreadable or not_found(session_id)

    async def kept(self, spec: ServiceSpec) -> tuple[int, int, tuple[str, ...]]:
        """How many sessions of it there are, how many of them are on nodes, and the names of the nodes that
        cannot say so now.
        """
        here = (await self._in_thread(archive.figures, self.journal(spec))).sessions
        on_nodes, unread = 0, list[str]()
        for node_id in self._nodes.node_ids() if self._nodes is not None else ():
            assert self._nodes is not None
            try:
                found, failed = await self._nodes.read(node_id, archive.figures, of={spec.service_id: {}})
            except StorageError as error:
                logger.debug("%s", error)  # `agentmgr nodes` says so
                if not spec.config.command:
                    unread.append(self._nodes.name(node_id))
                continue
            on_nodes += sum(figures.sessions for figures in found.values())
            if failed:
                unread.append(self._nodes.name(node_id))
        return here + on_nodes, on_nodes, tuple(unread)

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

        specs = tuple(specs)
        found = set(await self._in_thread(lambda: frozenset(look())))
        async for by_spec in self._on_nodes(archive.has_unfinished, specs):
            found |= {spec.service_id for spec, has_some in by_spec if has_some}
        return frozenset(found)

    # To erase

    async def erase(self, session_id: str) -> None:
        """Erases it with all that was said in it. An instance that has it loses it at its next event.

        Raises `SessionNotFound`.
        """
        spec, _, _ = await self.find(session_id)
        if not await self._in_journal(archive.erase, spec, session_id):
            raise not_found(session_id)

    async def remove(self, spec: ServiceSpec) -> None:
        """Removes the journal of a service that has no instances any more."""
        await self._in_thread(copies.remove, self.journal(spec))
        if self._nodes is not None:
            self._nodes.post(copies.remove, spec.service_id)

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
            _announce_pruned(spec, pruned, announce)
        limits = {
            spec.service_id: {
                "retention_s": spec.config.session_retention,
                "max_bytes": spec.config.sessions_max_bytes,
            }
            for spec in self._services()
        }
        async for by_spec in self._on_nodes(archive.prune, tuple(self._services()), limits):
            for spec, pruned in by_spec:
                _announce_pruned(spec, pruned, announce)

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

    async def _in_journal(self, do: Callable[..., T], spec: ServiceSpec, session_id: str, *args: object) -> T:
        """`do` on the journal that has the session. Raises `StorageError`, `SessionNotFound`."""
        if self._nodes is None or not (node_id := named_node(session_id)):
            return await self._in_thread(do, self.journal(spec), session_id, *args)
        found, failed = await self._nodes.read(node_id, do, session_id, *args, of={spec.service_id: {}})
        if spec.service_id in failed:
            raise StorageError(failed[spec.service_id])
        if spec.service_id not in found:
            raise not_found(session_id)
        value: T = found[spec.service_id]
        return value

    async def _on_nodes(
        self,
        do: Callable[..., T],
        specs: Sequence[ServiceSpec],
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> AsyncIterator[Sequence[tuple[ServiceSpec, T]]]:
        """What `do` gives for the journals of these services, node after node; of what cannot be read
        nothing.
        """
        by_id = {spec.service_id: spec for spec in specs}
        of = options or {service_id: {} for service_id in by_id}
        for node_id in self._nodes.node_ids() if self._nodes is not None and by_id else ():
            assert self._nodes is not None
            try:
                found, failed = await self._nodes.read(node_id, do, of=of)
            except StorageError as error:
                logger.debug("%s", error)  # `agentmgr nodes` says so
                continue
            for service_id, why in failed.items():
                logger.warning("the journal of %s on a node: %s", by_id[service_id].name, why)
            yield [(by_id[service_id], value) for service_id, value in found.items()]

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


def _announce_pruned(spec: ServiceSpec, pruned: archive.Pruned, announce: Callable[[Event], object]) -> None:
    unused, for_room = len(pruned.unused), len(pruned.for_room)
    if unused or for_room:
        detail = {"unused": unused, "for_room": for_room}
        logger.info("%s: erased %d sessions unused, %d for room", spec.name, unused, for_room)
        announce(Event("sessions.pruned", service_id=spec.service_id, detail=detail))
