"""All sessions of a host: who may open one, who may take one up again, and how they end."""

from __future__ import annotations

import trio

from .. import protocol
from ..boundary import Failure, contain, report
from ..protocol import EndReason, ErrorCode, LossReason
from .budget import Budget
from .events import Event
from .incoming import BadInput
from .limits import HOST_BYTES, SESSION_BYTES, SessionLimits
from .message import Client
from .session import Agent, Session
from .session_ids import SessionIds, how_it_ended, no_session


class SessionRegistry:
    """Each session's life is a task in `run`'s nursery."""

    def __init__(
        self,
        agent: Agent,
        limits: SessionLimits,
        *,
        instance_id: str = "",
        host_bytes: int = HOST_BYTES,
    ) -> None:
        self.budget = Budget(host_bytes)
        self._agent = agent
        self.limits = limits
        self._ids = SessionIds(instance_id)
        self._sessions: dict[str, Session] = {}
        self._nursery: trio.Nursery | None = None
        self.at_rest = trio.lowlevel.ParkingLot()  #: unparked when a turn is over, or a session has ended

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def turns(self) -> int:
        """How many sessions are at work on an answer."""
        return sum(session.busy for session in self._sessions.values())

    @property
    def turns_alone(self) -> int:
        """How many of those have no client at present."""
        return sum(session.busy and not session.connected for session in self._sessions.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then every session ends, its author's `on_session_end` included.

        Raises `RuntimeError` when an author's code has cancelled the nursery: no session goes on or begins.
        """
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()
        raise RuntimeError("the agent's code cancelled what all sessions run in, so this process ends")

    def create(self, client: Client) -> Session:
        """Raises `BadInput`: `max_sessions`, `host_full`."""
        assert self._nursery is not None, "run() is not running"
        most = self.limits.max_conversations
        if most and len(self._sessions) >= most and not self._replace():
            raise BadInput(ErrorCode.MAX_SESSIONS, f"this agent serves at most {most} sessions at once")
        if not self.budget.make_room(SESSION_BYTES) and not self._replace():
            self.budget.require(SESSION_BYTES)
        session = Session(self._ids.new(), self._agent, client, self.limits, self.budget, self.rested)
        self._sessions[session.id] = session
        session.publish(Event(protocol.SESSION_CREATED, {"session_id": session.id}))
        self._nursery.start_soon(self._live, session, name=repr(session))
        return session

    def find(self, session_id: str, client: Client) -> Session:
        """Raises `BadInput`: `session_not_found`, also for a session of another identity."""
        session = self._sessions.get(session_id)
        if session is None:
            raise self._ids.missing(session_id, client.identity)
        if session.owner != client.identity:
            raise no_session(LossReason.UNKNOWN)
        if session.ended:  # its author's hook still runs; it takes no message any more
            raise no_session(how_it_ended(session))
        return session

    def end_all(self, reason: EndReason) -> None:
        for session in self._sessions.values():
            session.end(reason)

    def _replace(self) -> bool:
        """Ends a session to make room for a new one; False where there is none to be ended."""
        # A client that left is less than a client that is here; a running turn is never given up for one.
        left = [s for s in self._sessions.values() if not s.connected and not s.busy]
        if not left:
            return False
        oldest = min(left, key=lambda session: session.last_used)
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
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        self._ids.ended(session)
        self.rested()

    def rested(self) -> None:
        """Wakes the tasks that wait until nothing goes on."""
        self.at_rest.unpark_all()
