"""What happens in a turn: the author's code answers a message, and what it keeps is made ready to be kept."""

from __future__ import annotations

import math
import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .. import protocol
from ..boundary import Failure, attempt, contain, name_of, report
from ..protocol import TurnCode
from . import history
from .events import Event
from .holdings import Holdings
from .keeping import Keeping
from .message import Message
from .turn import Turn

if TYPE_CHECKING:
    from .session import Session

HOOK_TIMEOUT_S = 5.0


class Agent(Protocol):
    """What `adapt` makes of whatever a factory returned. All of it runs under trio."""

    async def on_session_start(self, session: Session) -> None: ...
    async def on_message(self, session: Session, message: Message) -> Any: ...
    async def on_session_end(self, session: Session) -> None: ...
    async def export_memory(self, session: Session) -> str | None: ...
    async def import_memory(self, session: Session, text: str) -> None: ...
    def explain(self, error: BaseException) -> str | None: ...


async def begin(session: Session, agent: Agent, keeping: Keeping | None) -> None:
    """Has the author's code take the session up. Raises what `on_session_start` does."""
    await agent.on_session_start(session)
    if keeping is not None and session.restored:
        keeping.prevail(session)
    if keeping is not None and (memory := keeping.memory) is not None:
        read = await contain(lambda: agent.import_memory(session, memory))
        if isinstance(read, Failure):
            report("import_memory failed: the agent does not remember the turns before", read.error)


async def work_on(turn: Turn, session: Session, agent: Agent, keeping: Keeping | None) -> Event:
    """The event that ends the turn."""
    if turn.given_up:
        reason = "the host needed its room while the client was away"
        return Event(protocol.INTERRUPTED, {"reason": reason})
    if turn.lost:
        said = "the instance died in this turn; what it had done by then may not be all that was streamed"
        return Event(protocol.AGENT_ERROR, {"code": TurnCode.INSTANCE_LOST, "message": said})
    with turn.scope:
        if turn.scope.cancel_called:  # it waited for longer than its client may be away
            return Event(protocol.INTERRUPTED, {"reason": "the client went away"})
        turn.attempts += 1
        turn.message.attempt = turn.attempts
        if keeping is not None:
            turn.started_at = time.time()
            keeping.started(turn)
        limit = session.limits.turn_timeout or math.inf
        with trio.move_on_after(limit) as clock:
            answer = await contain(lambda: agent.on_message(session, turn.message))
            if isinstance(answer, Failure):
                return error_event(answer, session, agent)
            if answer is not None:
                return Event(protocol.FINAL_ANSWER, answer)
            return Event(protocol.FINAL_ANSWER, turn.streamed, {"truncated": True} if turn.truncated else {})
        if clock.cancelled_caught:
            return Event(protocol.TIMEOUT, {"timeout_s": limit})
    return Event(protocol.INTERRUPTED, {"reason": "the client went away"})


async def look_at_what_is_kept(end: Event, session: Session, agent: Agent, keeping: Keeping) -> Event:
    """Has what the author and a framework keep committed with the turn's end, which it returns."""
    memory: str | None = None
    with trio.move_on_after(HOOK_TIMEOUT_S):
        exported = await contain(lambda: agent.export_memory(session))
        if isinstance(exported, Failure):
            report("export_memory failed", exported.error)
        else:
            memory = exported
    too_large = keeping.look(session.state, memory)
    if too_large is None:
        return end
    attempt(lambda: keeping.put_back(session.state))
    return Event(protocol.AGENT_ERROR, {"code": TurnCode.STATE_TOO_LARGE, "message": too_large})


def remember(turn: Turn, end: Event, session: Session, holdings: Holdings) -> history.Entry | None:
    """Adds a turn to the history. Returns the entry of its answer, if there is one."""
    if turn.given_up:
        return None
    added, keeping = history.entries(turn, end), holdings.keeping

    def add() -> None:
        changed = keeping is not None and keeping.is_changed(session.history)
        session.history += added
        forgotten, holdings.history_bytes = history.trim(session.history)
        session.forgotten += forgotten
        if keeping is not None and changed:
            keeping.keep_history(session.history, turn.number)
        elif keeping is not None:
            keeping.added(added, forgotten)

    # `history` is the author's to change, and so need not be a list any more.
    remembered = attempt(add)
    if isinstance(remembered, Failure):
        report("session.history cannot be added to", remembered.error)
    return added[1] if len(added) > 1 else None


def error_event(failure: Failure, session: Session, agent: Agent) -> Event:
    error_id, name = f"err_{secrets.token_hex(6)}", name_of(failure.error)
    report(f"{error_id} in session {session.id[:8]}…", failure.error)
    why = attempt(lambda: agent.explain(failure.error))
    if not isinstance(why, str):
        why = f"its log has the details under {error_id}"
    text = f"the agent failed with {name}; {why}"
    return Event(protocol.AGENT_ERROR, {"error_id": error_id, "type": name, "message": text})
