"""The sessions of a database's services, as their journals have them, whether anything runs or not."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from attrs import asdict, evolve, frozen

from ..agent.events import expand
from ..core import lookup
from ..core.affinity import named_node
from ..errors import InvalidRequest, StorageError
from ..journal import copies
from ..journal.archive import (
    Archive,
    ArchiveFigures,
    Found,
    Limits,
    Pruned,
    Query,
    SaidMessage,
    SessionSummary,
    place_in,
)
from ..journal.archive import SessionPage as Page
from ..journal.file_archive import DirectoryArchive
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
from .network_journals import NetworkJournals
from .session_views import ends_session, export_line, info_of, message_event, not_found, question_of, turn_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 0.1  #: between looks at a journal for what is new, while a session is watched
PRUNE_EVERY_S = 60.0

Send = Callable[[Sequence[tuple[int | None, bytes]]], Awaitable[None]]
"""Takes events: a number (None: a person's message), and the JSON text that the session's clients get."""


class SessionsOfNodes(Protocol):
    """What nodes keep: `cluster.remote_sessions`."""

    def archives(self) -> Sequence[Archive]: ...

    def archive(self, node_id: str) -> Archive: ...

    def name(self, node_id: str) -> str: ...

    def nodes_of(self, node_id: str) -> frozenset[str]: ...

    def is_moving(self, service_id: str, node_id: str) -> bool: ...

    async def settled(self, service_id: str, node_id: str) -> None: ...


@frozen
class StoredSession:
    """One, and where it was found."""

    spec: ServiceSpec
    archive: Archive
    summary: SessionSummary
    snapshot: SessionSnapshot


class StoredSessions:
    """Reads the journals `DIRECTORY/SERVICE_ID.db`, those of nodes and those of the network, and erases what
    is in them.

    The id of a session says on which node its journal is, if it is on one.
    """

    def __init__(
        self,
        directory: Path,
        services: Callable[[], Iterable[ServiceSpec]],
        nodes: SessionsOfNodes | None = None,
        network: NetworkJournals | None = None,
    ) -> None:
        """`nodes`: None without a cluster."""
        self._network = network
        self._directory = directory
        self._services = services
        self._nodes = nodes
        self._here = DirectoryArchive(directory)

    # Where

    def archives(self) -> Sequence[Archive]:
        """All places that have sessions."""
        return [self._here, *(self._nodes.archives() if self._nodes is not None else ()), *self._of_network()]

    def _archives_of(self, session_id: str) -> Sequence[Archive]:
        """Those that may have this session."""
        if self._nodes is None or (named := named_node(session_id)) is None:
            return [self._here, *self._of_network()]
        found = sorted(self._nodes.nodes_of(named), key=lambda node_id: node_id != named)
        places: list[Archive] = [self._nodes.archive(node_id) if node_id else self._here for node_id in found]
        return places if named else [*places, *self._of_network()]

    def _of_network(self) -> Sequence[Archive]:
        return () if self._network is None else self._network.archives()

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
        """Those of one service or of all, the last used first; `text`: in their name or id. What cannot be
        read is named, and left out.

        Raises `ServiceNotFound`, `InvalidRequest`; of one service on one machine, `StorageError`.
        """
        services = list(self._services())
        asked = services if service is None else [lookup.service(services, service)]
        specs = {spec.service_id: spec for spec in asked}
        query = Query(state, owner, text, limit)

        async def read(archive: Archive) -> Found[Page]:
            cursors = {service_id: place_in(_key(archive, service_id), cursor) for service_id in specs}
            return await archive.sessions(query, cursors)

        found: list[tuple[str, ServiceSpec, SessionSummary]] = []
        unreadable: list[str] = []
        more = False
        answers = await self._everywhere(read)
        for archive, pages in answers:
            if isinstance(pages, StorageError):
                logger.warning("%s", pages)
                unreadable.append(archive.label)
                continue
            for service_id, page in pages.values.items():
                key, spec = _key(archive, service_id), specs[service_id]
                found.extend((key, spec, summary) for summary in page.items)
                more = more or page.next_cursor is not None
            for service_id, why in pages.unreadable.items():
                if service is not None and len(answers) == 1:
                    raise StorageError(why)
                logger.warning("the sessions of %s cannot be read: %s", specs[service_id].name, why)
                where = f" on {archive.label}" if archive.key else ""
                unreadable.append(specs[service_id].name + where)
        found.sort(key=lambda one: (-one[2].last_used_at, one[0]))
        shown, more = found[:limit], more or len(found) > limit
        next_cursor = f"{shown[-1][2].place}:{shown[-1][0]}" if shown and more else None
        items = tuple(info_of(spec, summary) for _, spec, summary in shown)
        return SessionPage(items, limit, next_cursor, tuple(unreadable))

    async def get(self, session_id: str) -> SessionDetail:
        """One, with its last turns. Raises `SessionNotFound`."""
        found = await self.find(session_id)
        spec, summary, snapshot = found.spec, found.summary, found.snapshot
        calls = await found.archive.events_with(spec.service_id, session_id, json.dumps(TOOL_CALL))
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
        specs = {spec.service_id: spec for spec in (self._services() if of is None else of)}
        found = [
            question_of(specs[service_id], one, one.question)
            for archive, answer in await self._everywhere(lambda archive: archive.questions(specs))
            for service_id, ones in self._readable(archive, answer, specs)
            for one in ones
        ]
        return tuple(sorted(found, key=lambda question: question.asked_at))

    async def pass_on_events(
        self, session_id: str, send: Send, *, since: int = 0, following: bool = True, messages: bool = False
    ) -> None:
        """Sends all events after the number `since`; `following`: then each new one, to the session's end.

        With `messages`, also the `user.message` that began each turn, before its first event. Raises
        `SessionNotFound`.
        """
        one = await self.find(session_id)
        archive, service_id = one.archive, one.spec.service_id
        ended = one.summary.state is SessionState.ENDED
        read = running = 0  # numbers of turns
        said: dict[int, SaidMessage] = {}  # those that were read, until the first event of their turn
        if messages and since:
            read = await archive.turn_of(service_id, session_id, since)
        while True:
            if messages:  # before its events are looked for: none of an earlier turn is to come after it
                running = await archive.turn_that_runs(service_id, session_id)
            found = await archive.events(service_id, session_id, since)
            newest = max((frame.turn for frame in found), default=0) if found else running
            if messages and newest > read:
                said.update(await archive.messages(service_id, session_id, read, newest))
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

    async def find(self, session_id: str) -> StoredSession:
        """Raises `SessionNotFound`; `StorageError` where it may be in a journal that cannot be read."""
        specs = {spec.service_id: spec for spec in self._services()}
        unreadable: StorageError | None = None
        for archive in self._archives_of(session_id):
            try:
                found = await archive.session(specs, session_id)
            except StorageError as error:
                unreadable = error
                continue
            for service_id, one in found.values.items():
                if one is not None:
                    return StoredSession(specs[service_id], archive, *one)
            for why in found.unreadable.values():
                unreadable = StorageError(why)
        raise unreadable or not_found(session_id)

    async def kept(self, spec: ServiceSpec) -> tuple[int, int, tuple[str, ...]]:
        """How many sessions of it there are, how many of them `back_up` leaves out, and the places that
        cannot say so now.
        """
        count, elsewhere = 0, 0
        unread: list[str] = []
        for archive, answer in await self._everywhere(lambda archive: archive.figures([spec.service_id])):
            if isinstance(answer, StorageError):
                logger.debug("%s", answer)  # `agentmgr nodes` says so
                if not spec.config.command:
                    unread.append(archive.label)
                continue
            if answer.unreadable:
                if not archive.key:
                    raise StorageError(*answer.unreadable.values())
                unread.append(archive.label)
            sessions = sum(figures.sessions for figures in answer.values.values())
            count += sessions
            elsewhere += sessions if archive.key else 0
        return count, elsewhere, tuple(unread)

    async def figures_here(self) -> Found[ArchiveFigures]:
        """Of all journals on this machine."""
        return await self._here.figures([spec.service_id for spec in self._services()])

    async def unfinished(self, specs: Iterable[ServiceSpec]) -> frozenset[str]:
        """The ids of those of these services that have turns which no instance has finished."""
        by_id = {spec.service_id: spec for spec in specs}
        return frozenset(
            service_id
            for archive, answer in await self._everywhere(lambda archive: archive.has_unfinished(by_id))
            for service_id, has_some in self._readable(archive, answer, by_id)
            if has_some
        )

    # To erase

    async def erase(self, session_id: str) -> None:
        """Erases it with all that was said in it. An instance that has it loses it at its next event.

        Raises `SessionNotFound`.
        """
        found = await self.find(session_id)
        service_id, at = found.spec.service_id, found.archive.node_id
        if at is not None and self._nodes is not None and self._nodes.is_moving(service_id, at):
            await self._nodes.settled(service_id, at)  # else it would arrive after that
            found = await self.find(session_id)
        if not await found.archive.erase(found.spec.service_id, session_id):
            raise not_found(session_id)

    async def remove(self, spec: ServiceSpec) -> None:
        """Removes the journals of a service that has no instances any more."""
        for archive in self.archives():
            await archive.remove(spec.service_id)

    async def prune(self, announce: Callable[[Event], object]) -> None:
        """Erases what each service no longer keeps, and announces how many sessions that were."""
        specs = {spec.service_id: spec for spec in self._services()}
        limits = {
            service_id: Limits(spec.config.session_retention, spec.config.sessions_max_bytes)
            for service_id, spec in specs.items()
        }
        for archive, answer in await self._everywhere(lambda archive: archive.prune(limits)):
            for service_id, pruned in self._readable(archive, answer, specs):
                _announce_pruned(specs[service_id], pruned, announce)

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
            await trio.to_thread.run_sync(copies.back_up, journals, RuntimePaths.of(destination).sessions)
            if (cluster := self._directory.with_name("cluster")).exists():
                from .. import ca  # here: one machine has none

                await trio.to_thread.run_sync(ca.back_up, cluster, RuntimePaths.of(destination).cluster)
            done = True
        finally:
            if not done:
                destination.unlink(missing_ok=True)  # noqa: ASYNC240  # at once, also when cancelled

    async def _everywhere(
        self, ask: Callable[[Archive], Awaitable[Found[T]]]
    ) -> Sequence[tuple[Archive, Found[T] | StorageError]]:
        """What each place answers, in the order of `archives`; all are asked at once. Raises
        `InvalidRequest`.
        """
        archives = self.archives()
        answers: dict[int, Found[T] | StorageError] = {}
        refused: list[InvalidRequest] = []

        async def one(number: int, archive: Archive) -> None:
            try:
                answers[number] = await ask(archive)
            except StorageError as error:
                answers[number] = error
            except InvalidRequest as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for number, archive in enumerate(archives):
                nursery.start_soon(one, number, archive)
        if refused:
            raise refused[0]
        return [(archive, answers[number]) for number, archive in enumerate(archives)]

    @staticmethod
    def _readable(
        archive: Archive, answer: Found[T] | StorageError, specs: Mapping[str, ServiceSpec]
    ) -> Iterable[tuple[str, T]]:
        """What was found, by service id; what cannot be read is left out, and logged."""
        if isinstance(answer, StorageError):
            logger.debug("%s", answer)  # `agentmgr nodes` says so
            return ()
        for service_id, why in answer.unreadable.items():
            # A host says it too, and sets aside what is damaged.
            logger.warning("the journal of %s on %s: %s", specs[service_id].name, archive.label, why)
        return answer.values.items()

    def journal(self, spec: ServiceSpec) -> Path:
        return self._here.path(spec.service_id)


def _key(archive: Archive, service_id: str) -> str:
    """What a cursor calls a journal, and what orders those of one moment."""
    return f"{service_id}@{archive.key}" if archive.key else service_id


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


def _announce_pruned(spec: ServiceSpec, pruned: Pruned, announce: Callable[[Event], object]) -> None:
    unused, for_room = len(pruned.unused), len(pruned.for_room)
    if unused or for_room:
        detail = {"unused": unused, "for_room": for_room}
        logger.info("%s: erased %d sessions unused, %d for room", spec.name, unused, for_room)
        announce(Event("sessions.pruned", service_id=spec.service_id, detail=detail))
