"""The sessions of a service follow its instances: where none of it is left on a node, its journal moves away.

That is so after a drain, after a restart while the node is cordoned, where fewer instances are to run, and
where `place_on` has changed. The journal goes to a node where the service runs; until it is there, clients
of its sessions wait. Each step is written down first, so that the next manager goes on with it; nothing is
removed before it has arrived. On the node: `node.session_moves`; which session is where: `core.moves`.
"""

from __future__ import annotations

import logging
import math
from base64 import b64decode
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve

from ..cluster.node_handle import NodeLost, OrderFailed
from ..cluster.nodes import OWN, Nodes
from ..core.moves import JournalMove, JournalPlace, Moved, MoveStep, arrived
from ..core.placement import Nowhere, Placed, Wish, place
from ..errors import StorageError
from ..journal import moving
from ..journal.archive import ArchiveFigures, Found
from ..models import Event, ServiceSpec, new_id
from ..models.nodes import NodeState, selectors
from ..node.session_moves import (
    CopyPiece,
    CopySessions,
    CopyWritten,
    DropCopy,
    LeaveSessions,
    MoveAnswer,
    MoveOrder,
    PutInSessions,
    ReadCopy,
    SessionMoves,
    SessionsCopied,
    SessionsLeft,
    SessionsPutIn,
    WriteCopy,
)
from ..storage.store import Store

logger = logging.getLogger(__name__)

LINGER_S = 5.0
"""Before a journal moves: an instance that is restarted, or that load brings back at once, finds it there."""
_AGAIN_S = 2.0  #: after a step has failed
_LOOK_S = 0.2  #: between two looks at what runs where

Pair = tuple[str, str]  #: a service and a node, by their ids
Kind = TypeVar("Kind", bound=MoveAnswer)


class SessionMover:
    """Of one manager. `look` is called with each routing table, `run` does the work."""

    def __init__(
        self,
        store: Store,
        places: Iterable[JournalPlace],
        nodes: Nodes,
        placed: Placed,
        sessions: Path,
        sessions_url: str | None = None,
    ) -> None:
        """`sessions`: the directory of this machine's journals. `placed`: what runs where. `sessions_url`: of
        the manager's network journal, if it has one. Raises `StorageError`.
        """
        self._store, self._nodes, self._placed, self._sessions_url = store, nodes, placed, sessions_url
        self._own = SessionMoves(sessions, lambda service_id: (service_id, OWN) in placed.pairs())
        self._places = defaultdict[str, dict[str, JournalPlace]](dict)
        for known in places:
            self._places[known.service_id][known.node_id] = known
            if known.node_id == OWN:  # the database knows; the file may be that of a copy
                moving.begin_generation(sessions / f"{known.service_id}.db", known.generation)
        self._maybe = {
            (it.service_id, it.node_id) for it in self._all_places() if it.move is not None
        }  # pairs that may have sessions
        self._under_way: dict[Pair, trio.Event] = {}  # set: it is not to linger
        self._hurried = set[Pair]()  # nor are these
        self._closed = set[Pair]()  # where nothing of the service may be started, besides those written down
        self._landing = set[Pair]()  # where sessions are about to arrive
        self._forced = set[Pair]()  # that are to move also where the service runs nowhere
        self._troubles: dict[Pair, str] = {}
        self._runs = False
        self._writing = trio.Lock()
        self._spec: Callable[[str], ServiceSpec | None] = lambda service_id: None
        self._changed: Callable[[], object] = lambda: None
        self._published: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self._announce: Callable[[Event], object] = lambda event: None
        self._news = trio.Event()
        self.idle = trio.lowlevel.ParkingLot()  #: unparked when a move is over, or has failed

    # What others ask

    def look(self) -> Mapping[str, Mapping[str, Moved]]:
        """Where sessions are, for the routing table; what has to move is begun soon after."""
        wanted = self._wanted()
        if wanted - self._under_way.keys():
            self._news.set()
        table = defaultdict[str, dict[str, Moved]](dict)
        for known in self._all_places():
            table[known.service_id][known.node_id] = Moved(known.spans)
        for service_id, node_id in wanted:
            known = self._place(service_id, node_id)
            if known.move is None or known.move.step is not MoveStep.LEAVING:
                table[service_id][node_id] = Moved(known.spans, moving=True)
        return dict(table)

    def is_closed(self, service_id: str, node_id: str) -> bool:
        """Whether nothing of the service may be started on that node, as its sessions are leaving it."""
        return (service_id, node_id) in self._closed or self._place(service_id, node_id).move is not None

    def nodes_of(self, node_id: str) -> frozenset[str]:
        """Where sessions may be whose ids name that node, of any service."""
        found = {node_id}
        for places in self._places.values():
            if (known := places.get(node_id)) is not None:
                found |= {span.at for span in known.spans}
        return frozenset(found)

    def is_moving(self, service_id: str, node_id: str) -> bool:
        return (service_id, node_id) in self._wanted()

    async def settled(self, service_id: str, node_id: str) -> None:
        """Returns when that journal is not moving."""
        while self.is_moving(service_id, node_id):
            self._hurry((service_id, node_id))
            await self.idle.park()

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now, for the user. That a node is away is none of these."""
        return tuple(sorted({text for (_, it), text in self._troubles.items() if self._is_linked(it)}))

    def left_on(self, node_id: str) -> tuple[str, ...]:
        """What has not moved from there yet, and why, for the user."""
        return tuple(
            self._troubles.get(pair) or f"the sessions of {self._name(pair[0])} are on their way"
            for pair in sorted(self._wanted())
            if pair[1] == node_id
        )

    async def empty(self, node_id: str, figures: Callable[[], Awaitable[Found[ArchiveFigures]]]) -> None:
        """Returns when no session is left there of a service that does not run there, also of those that run
        nowhere, or none that can move now. `figures`: of all services, there. Raises `StorageError`.
        """
        here = {service_id for service_id, at in self._placed.pairs() if at == node_id}
        for service_id, found in (await figures()).values.items():
            if found.sessions and service_id not in here:
                self._maybe.add((service_id, node_id))
                self._forced.add((service_id, node_id))
        self._changed()
        while pairs := {it for it in self._wanted() if it[1] == node_id} - self._troubles.keys():
            for pair in pairs:
                self._hurry(pair)
            self._news.set()
            await self.idle.park()

    # The work

    async def run(
        self,
        spec: Callable[[str], ServiceSpec | None],
        figures: Callable[[str], Awaitable[Found[ArchiveFigures]]],
        *,
        changed: Callable[[], object],
        published: Callable[[], Awaitable[object]],
        announce: Callable[[Event], object],
    ) -> None:
        """Until cancelled. `spec`: what is registered under an id. `figures`: of the journals on a node.
        `changed`: the routing table is to be made anew; `published`: it is. To be called when all is adopted.
        """
        self._spec, self._changed, self._published = spec, changed, published
        self._announce, self._runs = announce, True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._find, figures)
            while True:
                for pair in self._wanted() - self._under_way.keys():
                    self._under_way[pair] = trio.Event()
                    nursery.start_soon(self._move, pair)
                await self._news.wait()
                self._news = trio.Event()
                await trio.sleep(_LOOK_S)

    async def _find(self, figures: Callable[[str], Awaitable[Found[ArchiveFigures]]]) -> None:
        """Learns which journals are on each node, once each time that it has linked."""
        looked_at = set[str]()
        while True:
            linked = {OWN, *(handle.node_id for handle in self._nodes if handle.linked)}
            looked_at &= linked
            for node_id in linked - looked_at:
                try:
                    found = await figures(node_id)
                except StorageError as error:
                    logger.debug("%s", error)
                    continue
                looked_at.add(node_id)
                has = {it for it, figure in found.values.items() if figure.sessions}
                self._maybe |= {(service_id, node_id) for service_id in has}
            self._changed()
            with trio.move_on_after(_AGAIN_S if linked - looked_at else math.inf):
                await self._nodes.news.park()

    async def _move(self, pair: Pair) -> None:
        service_id, node_id = pair
        try:
            if self._place(*pair).move is None and pair not in self._hurried:
                with trio.move_on_after(LINGER_S):
                    await self._under_way[pair].wait()
            while pair in self._wanted():
                try:
                    await self._go_on(pair)
                    self._troubles.pop(pair, None)
                except (StorageError, NodeLost, OrderFailed) as error:
                    text = (
                        f"the sessions of {self._name(service_id)} cannot be moved from node "
                        f"{self._nodes.name_of(node_id)} now: {error}"
                    )
                    if self._troubles.get(pair) != text:
                        logger.warning("%s", text)
                    self._troubles[pair] = text
                    if self._place(*pair).move is None:
                        self._closed.discard(pair)
                    self.idle.unpark_all()
                    with trio.move_on_after(_AGAIN_S):
                        await self._nodes.news.park()
        except Exception:  # a fault of ours in one move must not end others
            logger.exception("internal error: the sessions of service %s cannot be moved", service_id)
            await trio.sleep(_AGAIN_S)
        finally:
            del self._under_way[pair]
            self._troubles.pop(pair, None)
            self._hurried.discard(pair)
            self._closed.discard(pair)
            self._changed()
            self._nodes.news.unpark_all()  # what waits for the node may be placed there
            self.idle.unpark_all()

    async def _go_on(self, pair: Pair) -> None:
        """One step. Raises `StorageError`, `NodeLost`, `OrderFailed`."""
        service_id, node_id = pair
        known = self._place(*pair)
        move = known.move
        self._closed.add(pair)
        gone = node_id != OWN and self._nodes.get(node_id) is None  # forgotten, with what it kept
        if move is None:
            if (other := self._arriving(pair)) is not None:  # else what arrives now would be left behind
                if other in self._troubles:
                    raise StorageError(f"first others are to arrive there: {self._troubles[other]}")
                await self.idle.park()
                return
            move_id = new_id("mov")
            if (
                gone
                or not (await self._ask(node_id, CopySessions(service_id, move_id), SessionsCopied)).bytes
            ):
                self._drop(pair)
            else:
                await self._set_move(pair, JournalMove(move_id, self._target(pair)))
        elif move.step is MoveStep.COPYING:
            # Where nodes are claimed, an instance may wait there for this to be over.
            is_needed = pair in self._placed.pairs()
            if gone or is_needed or not (pair in self._forced or self._runs_somewhere(service_id)):
                await self._over(known)
            else:
                await self._copy(known, move)
        elif move.step is MoveStep.ARRIVING:
            await self._arrive(known, move)
        else:
            if not gone:
                leave = LeaveSessions(service_id, move.move_id, known.generation)
                await self._ask(node_id, leave, SessionsLeft)
            await self._drop_copy(known, move)
            await self._over(known)

    async def _copy(self, known: JournalPlace, move: JournalMove) -> None:
        service_id, move_id, source, to = known.service_id, move.move_id, known.node_id, move.to
        pair = service_id, source
        size = (await self._ask(source, CopySessions(service_id, move_id), SessionsCopied)).bytes
        if not size:
            await self._over(known)
            return
        if self._may_go_to(service_id, to) and not await self._send(known, move, size):
            return
        if not self._may_go_to(service_id, to):  # also as the journal there has begun to leave
            await self._set_move(pair, evolve(move, to=self._target(pair)))
            return
        self._landing.add((service_id, to))
        try:
            await self._set_move(pair, evolve(move, step=MoveStep.ARRIVING))
        finally:
            self._landing.discard((service_id, to))

    async def _send(self, known: JournalPlace, move: JournalMove, size: int) -> bool:
        """Sends the copy, of that size, to the node that it moves to. Returns whether it has arrived."""
        service_id, move_id = known.service_id, move.move_id
        there = (await self._ask(move.to, WriteCopy(service_id, move_id, 0), CopyWritten)).bytes
        while there < size:
            piece = await self._ask(known.node_id, ReadCopy(service_id, move_id, there), CopyPiece)
            if not b64decode(piece.data):
                raise StorageError("the copy has shrunk")
            write = WriteCopy(service_id, move_id, there, piece.data)
            there = (await self._ask(move.to, write, CopyWritten)).bytes
        if there > size:  # of an earlier copy
            await self._drop_copy(known, move)
        return there == size

    async def _arrive(self, known: JournalPlace, move: JournalMove) -> None:
        service_id, source, to = known.service_id, known.node_id, move.to
        if to != OWN and self._nodes.get(to) is None:  # forgotten, with what had come there
            await self._set_move((service_id, source), evolve(move, step=MoveStep.COPYING))
            return
        try:
            done = await self._ask(to, PutInSessions(service_id, move.move_id), SessionsPutIn)
        except (OrderFailed, StorageError):
            # Some of it may have been put in: it goes to no other node. A copy that was damaged is no more
            # there, and is sent again.
            if self._is_linked(to) and self._is_linked(source):
                copied = CopySessions(service_id, move.move_id)
                await self._send(known, move, (await self._ask(source, copied, SessionsCopied)).bytes)
            raise
        await self._write(lambda: arrived(self._places[service_id], source).values())
        self.idle.unpark_all()
        await self._published()
        self._maybe.add((service_id, to))
        names = {"from": self._nodes.name_of(source), "to": self._nodes.name_of(to)}
        logger.info(
            "%d sessions of %s have moved from node %s to node %s",
            *(done.sessions, self._name(service_id), names["from"], names["to"]),
        )
        self._announce(
            Event("sessions.moved", service_id=service_id, detail={"sessions": done.sessions, **names})
        )

    async def _drop_copy(self, known: JournalPlace, move: JournalMove) -> None:
        if move.to == OWN or self._nodes.get(move.to) is not None:  # else it was forgotten, with that
            await self._ask(move.to, DropCopy(known.service_id, move.move_id), SessionsLeft)

    async def _over(self, known: JournalPlace) -> None:
        pair = known.service_id, known.node_id
        await self._set_move(pair, None)
        self._drop(pair)

    def _drop(self, pair: Pair) -> None:
        """Nothing is there."""
        self._maybe.discard(pair)
        self._forced.discard(pair)

    async def _set_move(self, pair: Pair, move: JournalMove | None) -> None:
        await self._write(lambda: [evolve(self._place(*pair), move=move)])

    async def _write(self, changed: Callable[[], Iterable[JournalPlace]]) -> None:
        """`changed` is called when no other write is under way: an arrival changes other nodes' entries."""
        async with self._writing:
            places = tuple(changed())
            await self._store.put_journal_places(places)
            for known in places:
                self._places[known.service_id][known.node_id] = known
        self._changed()

    async def _ask(self, node_id: str, order: MoveOrder, kind: type[Kind]) -> Kind:
        if node_id == OWN:
            answer = await self._own.answer(order)
            assert isinstance(answer, kind)
            return answer
        if (handle := self._nodes.get(node_id)) is None:
            raise StorageError(f"node {node_id} was forgotten")
        if not handle.linked:
            raise StorageError(f"node {handle.name} is {handle.state}")
        return await handle.call(order, kind)

    # What is where

    def _wanted(self) -> set[Pair]:
        """The journals that are to move, or do."""
        if not self._runs:
            return set()
        pairs = self._placed.pairs()
        self._maybe |= pairs
        running = {service_id for service_id, _ in pairs}
        gone = {
            pair
            for pair in self._maybe
            if self._place(*pair).move is not None
            or (pair not in pairs and (pair[0] in running or pair in self._forced))
        }
        kept = {pair for pair in gone if self._keeps_journals(pair[0])}
        self._maybe -= gone - kept
        return kept

    def _keeps_journals(self, service_id: str) -> bool:
        spec = self._spec(service_id)
        return (
            spec is not None
            and spec.config.keeps_sessions
            and spec.config.journal_url(self._sessions_url) is None
        )

    def _target(self, pair: Pair) -> str:
        """Where it moves to. Raises `StorageError` where no node can take it."""
        service_id = pair[0]
        running = {node_id for it, node_id in self._placed.pairs() if it == service_id}
        last = [span.at for span in self._place(*pair).spans[-1:]]
        linked = [it for it in self._nodes.candidates() if it.state is NodeState.LINKED]
        linked = [it for it in linked if not self.is_closed(service_id, it.node_id)]
        names = {it.node_id: it.name for it in linked if it.node_id in running}
        if names:
            return min(
                names,
                key=lambda it: (it not in last, -self._placed.of_service(service_id, it), names[it]),
            )
        cordoned = [it.node_id for it in self._nodes.candidates() if it.state is NodeState.CORDONED]
        if there := sorted(it for it in running & set(cordoned) if not self.is_closed(service_id, it)):
            return there[0]
        if (spec := self._spec(service_id)) is None or running:
            raise StorageError("no node that the service runs on is linked")
        others = [it for it in self._nodes.candidates() if not self.is_closed(service_id, it.node_id)]
        found = place(Wish(service_id, 0, selectors(spec.config.place_on)), others, Placed())
        if isinstance(found, Nowhere):
            raise StorageError(found.reason)
        return found

    def _arriving(self, pair: Pair) -> Pair | None:
        """Whose sessions are arriving there."""
        if pair in self._landing:
            return pair
        places = self._places.get(pair[0], {}).values()
        arriving = (it for it in places if it.move is not None and it.move.step is MoveStep.ARRIVING)
        return next(((pair[0], it.node_id) for it in arriving if it.move and it.move.to == pair[1]), None)

    def _runs_somewhere(self, service_id: str) -> bool:
        return any(it == service_id for it, _ in self._placed.pairs())

    def _may_go_to(self, service_id: str, node_id: str) -> bool:
        states = {it.node_id: it.state for it in self._nodes.candidates()}
        is_there = (service_id, node_id) in self._placed.pairs() or not self._runs_somewhere(service_id)
        is_left = self.is_closed(service_id, node_id)
        return is_there and not is_left and states.get(node_id) not in (None, NodeState.LOST)

    def _place(self, service_id: str, node_id: str) -> JournalPlace:
        known = self._places.get(service_id, {}).get(node_id)
        return JournalPlace(service_id, node_id) if known is None else known

    def _all_places(self) -> Collection[JournalPlace]:
        return [known for places in self._places.values() for known in places.values()]

    def _is_linked(self, node_id: str) -> bool:
        return node_id == OWN or ((handle := self._nodes.get(node_id)) is not None and handle.linked)

    def _name(self, service_id: str) -> str:
        spec = self._spec(service_id)
        return service_id if spec is None else spec.name

    def _hurry(self, pair: Pair) -> None:
        self._hurried.add(pair)
        if (event := self._under_way.get(pair)) is not None:
            event.set()
