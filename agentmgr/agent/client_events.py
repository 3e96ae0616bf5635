"""What each event of a client does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from .. import protocol
from ..journal.journal import SessionNameTaken
from ..protocol import EndReason, ErrorCode, NoticeCode
from .answers import Answers, StateRequests
from .budget import Budget
from .events import Event, addressed, encode
from .incoming import BadInput, ClientEvent, creation, sequence_number, session_name
from .link_sessions import LinkSessions
from .message import Message
from .replay import Gap
from .session import Session


class Answering(Protocol):
    """The connection, as far as it is answered on."""

    id: str

    def tell(self, event: Event, *, session_id: str | None = None) -> None: ...
    def send(self, frame: str | bytes) -> None: ...
    def refuse(self, bad: BadInput, event: ClientEvent | None = None) -> bool: ...


class ClientEvents:
    nursery: trio.Nursery  #: of the connection

    def __init__(self, link: Answering, sessions: LinkSessions, budget: Budget, answers: Answers) -> None:
        self._link, self._sessions, self._budget = link, sessions, budget
        self._states = StateRequests(self._tell_state, answers)

    async def take(self, event: ClientEvent) -> None:
        """What it does is done in one step at the end, without a checkpoint. Raises `BadInput`."""
        handler = _HANDLERS.get(event.event)
        if handler is not None:
            await handler(self, event)
        elif event.event.startswith("user."):
            raise BadInput(ErrorCode.UNKNOWN_EVENT, f"there is no event {event.event[:100]}")

    async def _create_session(self, event: ClientEvent) -> None:
        name, history, transient = creation(event)
        try:
            await self._sessions.create(name=name, history=history, transient=transient)
        except SessionNameTaken as taken:
            await self._resume_named(event, taken.session_id)

    async def _end_session(self, event: ClientEvent) -> None:
        session = await self._sessions.known(event)
        session.cancel("the session was ended by its client")
        session.end(EndReason.ENDED)

    async def _message(self, event: ClientEvent) -> None:
        session = await self._sessions.for_message(event.session_id)
        queue = event.fields.get("queue") is not False
        session.accept(Message(event.content, event.metadata), event.step_id, event.size, queue=queue)
        if not queue:
            notice = {
                "code": NoticeCode.TAKEN,
                "message": "the turn of this message is the next one",
                "after_seq": session.buffer.last_seq,
            }
            self._link.tell(Event(protocol.NOTICE, notice, step_id=event.step_id), session_id=session.id)

    async def _response(self, event: ClientEvent) -> None:
        session = await self._sessions.known(event)
        step_id = event.find("step_id")
        if not isinstance(step_id, str):
            raise BadInput(ErrorCode.INVALID_FIELD, "user.response needs the step_id of the question")
        session.answer(step_id, event.content)

    async def _cancel(self, event: ClientEvent) -> None:
        if not (await self._sessions.known(event)).cancel(step_id=event.step_id):
            self._link.tell(
                Event(protocol.NOTICE, {"code": NoticeCode.NOTHING_RUNNING, "message": "no turn is running"})
            )

    async def _ack(self, event: ClientEvent) -> None:
        if not self._sessions.ack(event):
            await self._sessions.known(event)

    async def _reconnect(self, event: ClientEvent) -> None:
        session_id = event.find("session_id")
        if isinstance(session_id, str):
            await self._resume(event, session_id)
        elif (name := session_name(event)) is not None:
            await self._resume_named(event, await self._sessions.named(name))
        else:
            raise BadInput(ErrorCode.INVALID_FIELD, f"{event.event} needs a session_id or a name")

    async def _resume_named(self, event: ClientEvent, session_id: str) -> None:
        try:
            await self._resume(event, session_id)
        except BadInput as bad:  # its owner learns the id, by which a gateway finds the instance
            raise BadInput(bad.code, str(bad), **bad.details, named=session_id) from None

    async def _resume(self, event: ClientEvent, session_id: str) -> None:
        last_seq = sequence_number(event, "last_seq")
        session, reader = await self._sessions.resume(
            session_id,
            last_seq,
            exclusive=event.find("exclusive") is True,
            only_watch=event.event == protocol.WATCH,
        )
        if event.event == protocol.RECONNECT_WITH_STATE:
            self._tell_state(session, event, protocol.STATE_RESTORED)
        buffer = session.buffer
        first = reader.sent + 1 if buffer.journaled else max(reader.sent + 1, buffer.first_seq)
        notice = {
            "code": NoticeCode.RESUMED,
            "message": "the session goes on",
            "replay_from": first,
            "last_seq": max(buffer.visible, reader.sent),
            "busy": session.busy,
        }
        if (missed := reader.gap()) is not None:
            notice |= describe(missed)
        self._link.tell(Event(protocol.NOTICE, notice), session_id=session.id)

    async def _request_state(self, event: ClientEvent) -> None:
        session = await self._sessions.known(event)
        self._states.add(session, event, self.nursery)

    def _tell_state(self, session: Session, event: ClientEvent, name: str = protocol.STATE_EXPORTED) -> None:
        text = addressed(encode(Event(name, session.snapshot()), session_id=session.id), self._link.id)
        try:
            self._budget.require(len(text))
        except BadInput as full:
            self._link.refuse(full, event)
        else:
            self._link.send(text)

    async def _ping(self, event: ClientEvent) -> None:
        self._link.tell(Event(protocol.PONG, event.content or ""))


def describe(gap: Gap) -> Mapping[str, Any]:
    return {
        "code": NoticeCode.GAP,
        "message": f"events {gap.first} to {gap.last} are no longer held",
        "missing_from": gap.first,
        "missing_to": gap.last,
    }


_HANDLERS: Mapping[str, Callable[[ClientEvents, ClientEvent], Awaitable[None]]] = {
    protocol.CREATE_SESSION: ClientEvents._create_session,
    protocol.END_SESSION: ClientEvents._end_session,
    protocol.MESSAGE: ClientEvents._message,
    protocol.RESPONSE: ClientEvents._response,
    protocol.CANCEL: ClientEvents._cancel,
    protocol.ACK: ClientEvents._ack,
    protocol.RECONNECT: ClientEvents._reconnect,
    protocol.RECONNECT_WITH_STATE: ClientEvents._reconnect,
    protocol.WATCH: ClientEvents._reconnect,
    protocol.REQUEST_STATE: ClientEvents._request_state,
    protocol.PING: ClientEvents._ping,
}
