"""All sessions of a host: who may open one, who may take one up again, and how they end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import trio
from attrs import Factory, define

from .. import protocol
from ..boundary import Failure, contain, report
from ..journal.journal import (
    Held,
    HeldElsewhere,
    SessionJournal,
    SessionNameTaken,
    SessionRecord,
    Unreachable,
)
from ..protocol import EndReason, ErrorCode, LossReason
from ..telemetry import Telemetry
from .budget import Budget
from .events import Event
from .history import Entry
from .incoming import BadInput
from .keeping import NotDurable, history_text
from .limits import HOST_BYTES, SESSION_BYTES, SessionLimits
from .message import Client
from .session import Session
from .session_ids import SessionIds, elsewhere, how_it_ended, no_session
from .work import Agent

logger = logging.getLogger("agentmgr.agent")

START_PATIENCE_S = 5.0
"""For the author's code to take a session up, or fail, before its client is answered; then it goes on."""
COMING_AT_ONCE = 16
"""Sessions with unfinished turns that are taken up at once when a host starts."""


_ANY_OWNER = Client()  #: in a `_Arrival`: the host itself asks


@define
class _Arrival:
    """A session on its way into memory; those who ask for it meanwhile wait together."""

    client: Client  #: who asked first; only its owner's session is taken up
    done: trio.Event = Factory(trio.Event)
    session: Session | None = None
    problem: BadInput | None = None


class SessionRegistry:
    """Each session's life is a task in `run`'s nursery."""

    def __init__(
        self,
        agent: Agent,
        limits: SessionLimits,
        *,
        instance_id: str = "",
        node_id: str | None = "",
        generation: int = 0,
        host_bytes: int = HOST_BYTES,
        journal: SessionJournal | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """`journal`: where sessions are kept; without one they live as long as this process. `node_id`: of
        the machine that has it, with its `generation` there; None: any machine has.
        """
        self.budget = Budget(host_bytes)
        self.journal = journal
        self.not_durable = NotDurable()
        self._agent = agent
        self._telemetry = telemetry
        self.limits = limits
        self._ids = SessionIds(instance_id, node_id, generation)
        self._sessions: dict[str, Session] = {}
        self._names: dict[tuple[str | None, str], str] = {}  # of those that are in memory only
        self._arrivals: dict[str, _Arrival] = {}
        self._reserved = 0  # places of sessions that are on their way
        self._going_away = False
        self.last_turn_at = trio.current_time()  #: when the last turn was over
        self.is_draining = False  #: no turn begins behind another one, and nothing is taken up
        self._nursery: trio.Nursery | None = None
        self.at_rest = trio.lowlevel.ParkingLot()  #: unparked when a turn is over, or a session has ended

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def turns(self) -> int:
        """How many sessions are at work on an answer."""
        return sum(session.busy for session in self._sessions.values())

    @property
    def asking(self) -> int:
        """How many of those wait for a person's answer."""
        return sum(session.questions.oldest is not None for session in self._sessions.values())

    @property
    def turns_alone(self) -> int:
        """How many of those have no client at present."""
        return sum(session.busy and not session.connected for session in self._sessions.values())

    @property
    def arriving(self) -> int:
        """How many are being taken up; turns may wait in them."""
        return len(self._arrivals)

    def journal_report(self) -> dict[str, object] | None:
        """What a manager shows of it; None where sessions are in memory only."""
        if self.journal is None:
            return None
        return {
            "degraded": self.journal.degraded,
            "not_durable": list(self.not_durable.notes),
            "set_aside": list(self.journal.set_aside),
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then every session ends, its author's `on_session_end` included.

        Raises `RuntimeError` when an author's code has cancelled the nursery: no session goes on or begins.
        """
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            if self.journal is not None:
                self._nursery.start_soon(self._finish_turns, self.journal)
            await trio.sleep_forever()
        raise RuntimeError("the agent's code cancelled what all sessions run in, so this process ends")

    async def create(
        self,
        client: Client,
        *,
        name: str | None = None,
        history: Sequence[Entry] = (),
        transient: bool = False,
    ) -> Session:
        """`transient`: it is not kept. Raises `BadInput`: `max_sessions`, `host_full`; `SessionNameTaken`."""
        self._make_room()  # counts with what is on its way
        session = self._session(self._ids.new(), client, name)
        session.seed(list(history))
        session.transient = transient
        if self.journal is None or transient:
            self._take_name(session)
        else:
            now = time.time()
            record = SessionRecord(
                session.id, client.identity, now, now, name, history=history_text(session.history)
            )
            self._reserved += 1
            try:
                with trio.CancelScope(shield=True):  # also when the client goes away meanwhile
                    held = await self.journal.create(record)
            finally:
                self._reserved -= 1
            session.keep(held, self.journal, self.not_durable)
        session.publish(Event(protocol.SESSION_CREATED, {"session_id": session.id}))
        self._begin(session)
        return session

    async def find(self, session_id: str, client: Client) -> Session:
        """A session in memory, or taken up from the journal; a host that drains takes up none.

        Raises `BadInput`: `session_not_found`, also for a session of another identity, `session_elsewhere`,
        `session_unreachable`, `draining`, `max_sessions`, `host_full`.
        """
        session = self._sessions.get(session_id)
        while session is None or (session.durable and session.leaving and not session.ended):
            if session is not None:
                await session.gone.wait()
            session = self._sessions.get(session_id) or await self._take_up(session_id, client)
            if session.broken is not None and session.owner == client.identity:
                raise BadInput(ErrorCode.SESSION_UNREACHABLE, session.broken)
        if session.owner != client.identity:
            raise no_session(LossReason.UNKNOWN)
        if session.ended:  # its author's hook still runs; it takes no message any more
            raise no_session(how_it_ended(session))
        return session

    async def named(self, name: str, client: Client) -> str:
        """The id of the client's session of that name. Raises `BadInput`: `session_not_found`,
        `session_unreachable`.
        """
        found = self._names.get((client.identity, name))
        if found is None and self.journal is not None:
            try:
                found = await self.journal.named(client.identity, name)
            except Unreachable as error:
                raise _problem(name, error) from None
        if found is None:
            raise no_session(LossReason.UNKNOWN)
        return found

    async def is_elsewhere(self, session_id: str, client: Client) -> BadInput | None:
        """Takes a session up for a client that has named it in its handshake. Where that cannot be: why.

        While this host drains, any other instance may have what is not in memory.
        """
        if self.journal is not None:
            try:
                await self.find(session_id, client)
            except BadInput as problem:
                if problem.code is ErrorCode.SESSION_ELSEWHERE:
                    return problem
                if problem.code is ErrorCode.DRAINING:
                    return BadInput(ErrorCode.SESSION_ELSEWHERE, str(problem), instance="")
        return None

    def end_all(self, reason: EndReason) -> None:
        for session in self._sessions.values():
            session.end(reason)

    def leave_all(self) -> None:
        """The process ends: durable sessions go on elsewhere or later, the others end. No other one comes."""
        self._going_away = True
        for session in self._sessions.values():
            session.leave()

    async def all_left(self) -> None:
        while self._sessions:
            await self.at_rest.park()

    async def _take_up(self, session_id: str, client: Client) -> Session:
        if self.journal is None or not self._ids.may_be(session_id):
            raise self._ids.missing(session_id, client, durable=self.journal is not None)
        if self.is_draining or self._going_away:
            raise BadInput(ErrorCode.DRAINING, "this agent ends soon and takes no session up; connect again")
        while True:
            arrival = self._arrivals.get(session_id)
            if arrival is None:
                assert self._nursery is not None, "run() is not running"
                arrival = self._arrivals[session_id] = _Arrival(client)
                # A task of its own: who asks may go away, and what is claimed must be held or given up.
                self._nursery.start_soon(self._arrive, session_id, arrival, self.journal)
            await arrival.done.wait()
            if arrival.session is not None:
                return arrival.session
            if arrival.client.identity == client.identity:  # else another one asked, who may not have it
                raise arrival.problem or self._ids.missing(session_id, client, durable=True)

    async def _arrive(self, session_id: str, arrival: _Arrival, journal: SessionJournal) -> None:
        self._reserved += 1
        try:
            # A boundary: what a journal has may be damaged, and would end all sessions of this host.
            outcome = await contain(lambda: self._claim(session_id, arrival.client, journal))
            if isinstance(outcome, Failure):
                arrival.problem = _problem(session_id, outcome.error)
            elif outcome is not None:
                arrival.session = outcome
                with trio.move_on_after(START_PATIENCE_S):
                    await outcome.started.wait()
        finally:
            self._reserved -= 1
            del self._arrivals[session_id]
            arrival.done.set()
            self.rested()

    async def _claim(self, session_id: str, client: Client, journal: SessionJournal) -> Session | None:
        self._make_room()
        held = await journal.take_up(
            session_id, None if client is _ANY_OWNER else lambda owner: owner == client.identity
        )
        if held is None:
            return None
        try:
            return await self._revive(held, journal)
        except Exception:  # goes on: only so that another instance, or a mended one, may try
            await held.release()
            raise

    async def _revive(self, held: Held, journal: SessionJournal) -> Session:
        record = held.loaded.record
        session = self._session(record.session_id, Client(None, record.owner, {}), record.name)
        if record.ended_at is not None:
            session.ended, session.end_reason = True, EndReason.ENDED
            session.started.set()
            return session
        await session.restore(held, journal, self.not_durable)
        if not record.last_seq:  # its host died before it said so; one with a name is written before that
            session.publish(Event(protocol.SESSION_CREATED, {"session_id": session.id}))
        self._begin(session)
        return session

    async def _finish_turns(self, journal: SessionJournal) -> None:
        """Takes up the sessions that were at work when their instance died."""
        limiter = trio.CapacityLimiter(COMING_AT_ONCE)

        async def finish(session_id: str) -> None:
            async with limiter:
                if session_id not in self._sessions:
                    try:
                        await self._take_up(session_id, _ANY_OWNER)
                    except BadInput as problem:  # it may be held elsewhere by now
                        logger.info("unfinished turns of %s… are left: %s", session_id[:8], problem)

        unfinished = await contain(journal.unfinished)
        if isinstance(unfinished, Failure):
            report("the journal cannot be asked for unfinished turns", unfinished.error)
            return
        async with trio.open_nursery() as nursery:
            for session_id in unfinished:
                nursery.start_soon(finish, session_id)

    def _session(self, session_id: str, client: Client, name: str | None) -> Session:
        return Session(
            session_id,
            self._agent,
            client,
            self.limits,
            self.budget,
            name=name,
            telemetry=self._telemetry,
            on_rest=self._turn_is_over,
        )

    def _begin(self, session: Session) -> None:
        assert self._nursery is not None, "run() is not running"
        self._sessions[session.id] = session
        self._nursery.start_soon(self._live, session, name=repr(session))

    def _take_name(self, session: Session) -> None:
        if session.name is not None:
            taken = self._names.setdefault((session.owner, session.name), session.id)
            if taken != session.id:
                raise SessionNameTaken(taken)

    def _make_room(self) -> None:
        """For one more session. Raises `BadInput`: `max_sessions`, `host_full`."""
        most = self.limits.max_conversations
        if most and self._count() >= most and not self._replace():
            raise BadInput(ErrorCode.MAX_SESSIONS, f"this agent serves at most {most} sessions at once")
        if not self.budget.make_room(SESSION_BYTES) and not self._replace():
            self.budget.require(SESSION_BYTES)

    def _count(self) -> int:
        leaving = self.journal is not None and sum(session.leaving for session in self._sessions.values())
        return len(self._sessions) + self._reserved - leaving

    def _replace(self) -> bool:
        """Ends a session to make room for a new one; False where there is none to be ended."""
        # A client that left is less than a client that is here; a running turn is never given up for one.
        left = [s for s in self._sessions.values() if not (s.connected or s.busy or s.leaving)]
        if not left:
            return False
        oldest = min(left, key=lambda session: session.last_used)
        if oldest.durable:
            oldest.leave()
        else:
            oldest.end(EndReason.REPLACED)
            self._forget(oldest)
        return True

    async def _live(self, session: Session) -> None:
        # The boundary of a session: whatever goes wrong in it, ours or the author's, is its end alone.
        try:
            outcome = await contain(session.run)
            if isinstance(outcome, Failure):
                report(f"{session!r} failed", outcome.error)
        finally:
            session.gone.set()
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        if self._names.get((session.owner, session.name or "")) == session.id:
            del self._names[session.owner, session.name or ""]
        if session.end_reason is not None:
            self._ids.ended(session)
        self.rested()

    def _turn_is_over(self, session: Session) -> None:
        if self.is_draining and session.durable and session.busy:
            session.leave()  # the messages that wait are answered where it is taken up
        self.last_turn_at = trio.current_time()
        self.rested()

    def rested(self) -> None:
        """Wakes the tasks that wait until nothing goes on."""
        self.at_rest.unpark_all()


def _problem(session_id: str, error: BaseException) -> BadInput:
    """What to say of a session that could not be taken up."""
    match error:
        case BadInput():
            return error
        case HeldElsewhere():
            return elsewhere(error.holder)
        case Unreachable():
            why = f"the session cannot be read just now: {error}; try again later"
        case _:
            report(f"the session {session_id[:8]}… could not be taken up", error)
            why = "the session could not be taken up; the agent's log has the reason"
    return BadInput(ErrorCode.SESSION_UNREACHABLE, why)
