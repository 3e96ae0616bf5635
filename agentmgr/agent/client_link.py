"""The host's side of one client's socket: frames become calls on sessions, sessions' events become frames.

Reading never waits for writing, so that pings, cancels and closes are seen at once; what is to be written
waits in the sessions' own bounded buffers, and control answers in a short queue.
"""

from __future__ import annotations

import json
import math

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from .. import protocol
from ..core.plain_text import AGAIN, as_plain_text, yes_or_no
from ..protocol import ErrorCode, NoticeCode
from .answers import Answers
from .client_events import ClientEvents, describe
from .drain import FIRST_FRAME_S, LINGER_S, LONGEST_LINGER_S, Drain
from .events import Event, addressed, encode
from .incoming import BadInput, ClientEvent, looks_like_an_event, parse, text_of
from .limits import weigh
from .link_log import CannotResume, Pong
from .link_resume import KeptLink, Resumption, replay
from .link_sessions import LinkSessions
from .link_stream import LinkStream
from .message import Client, Message
from .replay import Gap
from .session import Session
from .session_registry import SessionRegistry

GREETING_DELAY_S = 1.0
"""`system.connected` waits so long for a first frame, which shows whether the client speaks events at all."""
HEARTBEAT_S = 30.0
QUIET_S = 1800.0
WRITE_STALL_S = 30.0
"""A client that takes in nothing for so long is cut off; its sessions stay for it to come back to."""
CLOSE_TIMEOUT_S = 2.0
BATCH_BYTES = 16 * 1024
"""Of frames in one write; what is more waits where it can still be replayed."""


_LEAVES = (ErrorCode.SESSION_UNREACHABLE, ErrorCode.DRAINING)
"""Of a host that drains: they would not be said of another one."""


class ClientLink:
    def __init__(
        self,
        stream: LinkStream,
        websocket: WebSocketConnection,
        client: Client,
        sessions: SessionRegistry,
        drain: Drain,
        *,
        link_id: str,
        max_message_bytes: int,
        resumption: Resumption | None = None,
    ) -> None:
        """With a `resumption`, also one from the very beginning, another host can go on with it later."""
        self.id = link_id
        self._stream = stream
        self._websocket = websocket
        self._budget = sessions.budget
        self._sessions = LinkSessions(self, client, sessions, is_late=drain.begins_no_session)
        self._drain = drain
        self._max_message_bytes = max_message_bytes
        self._begin = resumption or Resumption()
        self._plain = self._begin.plain  # None: no frame has come yet
        self._greeted = self._begin.greeted
        self._kept: KeptLink | None = None
        if resumption is not None and sessions.journal is not None:
            self._kept = KeptLink(link_id, self, sessions.journal, resumption)
            stream.send_pong = self._pong
            self._sessions.on_end = self._kept.ended
        self._last_record: str | None = None
        self._gone = trio.Event()
        self._leaving: list[Session] = []
        self._answers = Answers(sessions.budget)
        self._events = ClientEvents(self, self._sessions, sessions.budget, self._answers)
        self._news = trio.Event()
        self._spoke = trio.Event()  # the client's first frame
        self._began_at = trio.current_time()
        self._heard = self._began_at  # when the last frame came
        self._closing = False
        self._is_at_rest = False  # and ends because the host drains
        self.must_reconnect = False  #: another instance holds a session of it
        self._gave_up = False  # it cannot be resumed, as it has turned out
        self._close_by = math.inf
        self._scope = trio.CancelScope()
        self._sessions.restore(self._begin.readers, self._begin.current)
        if self._begin.taken:
            self._spoke.set()

    async def run(self) -> None:
        """Until the client is gone, or is cut off, or `close` was called and all is said."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._events.nursery = nursery
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._greet)
                    nursery.start_soon(self._beat)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self._last_record = self.record()
            self._answers.close()
            for session in self._sessions.detach_all():
                if self._is_at_rest and not session.connected:
                    # Who comes back for it finds it elsewhere, or hears at once that it is over.
                    session.leave()
                    self._leaving.append(session)
            self._gone.set()

    @property
    def resumable(self) -> bool:
        """Whether another host can go on with it, if no close frame is sent."""
        kept = self._kept is not None and not self._kept.is_outdated
        return kept and not self._gave_up and self._websocket.closed is None

    async def left(self) -> None:
        """Waits until the sessions that have left with it may be taken up elsewhere."""
        for session in self._leaving:
            await session.gone.wait()

    def over(self, *, for_good: bool) -> None:
        """It is, here; unless it is `for_good`, it may be resumed."""
        if self._kept is not None:
            self._kept.end(for_good=for_good)

    async def abandon(self) -> str:
        """Ends it at once, because it is resumed; returns what is to be known of it."""
        self._scope.cancel()
        await self._gone.wait()
        return self.record()

    def record(self) -> str:
        """All that another host has to know to go on with it."""
        if self._last_record is not None:
            return self._last_record
        kept = {} if self._kept is None else self._kept.dump()
        kept |= {"plain": self._plain, "greeted": self._greeted}
        return json.dumps(kept | {"current": self._sessions.current, "readers": self._sessions.places})

    def close(self) -> None:
        """`run` returns when its sessions have ended and their last events are sent, at the latest in 2 s."""
        self._closing = True
        self._scope.deadline = self._close_by = trio.current_time() + CLOSE_TIMEOUT_S
        self._news.set()

    # From the client.

    async def _read(self) -> None:
        while True:
            try:
                frame = await self._websocket.get_message()
            except ConnectionClosed:
                return
            if self._closing or self._is_at_rest or self.must_reconnect:
                continue  # what is not begun any more may be sent again elsewhere; what is begun may not
            self._spoke.set()
            self._heard = trio.current_time()
            try:
                taken = await self._take(text_of(frame, self._max_message_bytes))
            except BadInput as bad:
                taken = self.refuse(bad, _whose(frame) if bad.code is ErrorCode.TOO_LARGE else None)
            if taken and self._kept is not None:
                self._kept.took_message(plain=bool(self._plain))
            del frame  # it may be large, and the next one may be long in coming
            await self._answers.have_room()

    async def _take(self, text: str) -> bool:
        """False: it is to be sent again, elsewhere. Raises `BadInput`."""
        if self._plain is None:
            self._plain = not looks_like_an_event(text)
        if self._plain:
            await self._take_plain(text)
            return True
        self._say_hello()
        event = parse(text)
        try:
            await self._events.take(event)
        except BadInput as bad:
            return self.refuse(bad, event)
        return True

    async def _take_plain(self, text: str) -> None:
        session = await self._sessions.for_message(None)
        if (step_id := session.questions.oldest) is not None:
            if (approved := yes_or_no(text)) is None:
                self.send(AGAIN)
            else:
                session.answer(step_id, approved)
        else:
            session.accept(Message(text), None, weigh(text))

    def refuse(self, bad: BadInput, event: ClientEvent | None = None) -> bool:
        """Says so; False where another host can take it, and so it is not said."""
        if self._kept is not None and self._drain.on and bad.code in _LEAVES:
            self.must_come_back()
            return False
        content = {"code": bad.code, **bad.details, "message": str(bad)}
        refusal = Event(protocol.ERROR, content, step_id=event.step_id if event else None)
        self.tell(refusal, session_id=event.session_id if event else None)
        return True

    # From sessions.

    def wake(self) -> None:
        """There may be something to write, or a reason to end."""
        self._news.set()

    def lose(self, session: Session) -> None:
        """Another connection reads the session, and wants it alone."""
        self._sessions.drop(session)
        notice = {"code": NoticeCode.TAKEN_OVER, "message": "the session goes on in another connection"}
        self.tell(Event(protocol.NOTICE, notice), session_id=session.id)

    def must_come_back(self) -> None:
        """Another instance holds a session of it: what this one says of it counts no more."""
        self.must_reconnect = True
        self.wake()

    # To the client.

    async def _write(self) -> None:
        try:
            if self._kept is not None:
                await self._kept.settled()
            await replay(self._begin.script, self._sessions, self._frame, self._send_at_once)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reading side ends the connection
        except CannotResume:
            self._gave_up = self.must_reconnect = True
        while True:
            if self.must_reconnect:
                break
            batch, size = [], 0
            while size < BATCH_BYTES and (frame := self._next_frame()) is not None:
                batch.append(frame)
                size += len(frame)
            if batch:
                self._answers.now_written(size)
                if self._kept is not None and not self._kept.is_settled:
                    await self._kept.settled()
                try:
                    await self._stream.send_texts(
                        batch, while_open=self._is_open, before_waiting=self._limit_waiting
                    )
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # the reading side ends the connection
                self._answers.now_written(0)
                if self._scope.deadline != self._close_by:
                    self._scope.deadline = self._close_by
            elif (behind := self._sessions.behind) is not None:
                await self._read_older(behind)
            elif self._closing and not self._sessions.attached:
                break
            elif self._drain.on:
                self._is_at_rest = await self._has_come_to_rest()
                if self._is_at_rest:
                    break
            else:
                self._news = trio.Event()
                await self._news.wait()
        self._scope.cancel()

    async def _has_come_to_rest(self) -> bool:
        """While the host drains: waits for news, or until nothing goes on here and it may be closed."""
        self._news = trio.Event()
        with trio.move_on_at(self._rests_at()):
            await self._news.wait()
            return False
        await self._drain.turn_to_close()
        return not self._news.is_set() and trio.current_time() >= self._rests_at()

    def _rests_at(self) -> float:
        if not all(session.at_rest for session in self._sessions.attached):
            return math.inf
        if self.resumable:  # what comes meanwhile, the gateway sends again
            return self._drain.began_at
        linger_s = LINGER_S if self._spoke.is_set() else FIRST_FRAME_S
        return min(self._heard + linger_s, max(self._drain.began_at, self._began_at) + LONGEST_LINGER_S)

    def _limit_waiting(self) -> None:
        # The deadline is the whole connection's: a scope for each write would cost as much as it.
        self._scope.deadline = min(self._close_by, trio.current_time() + WRITE_STALL_S)

    async def _send_at_once(self, frame: bytes) -> None:
        await self._stream.send_texts([frame], while_open=self._is_open)

    def _is_open(self) -> bool:
        return self._websocket.closed is None

    def _next_frame(self) -> bytes | None:
        if (frame := self._answers.pop()) is not None:
            return frame
        while (found := self._sessions.next()) is not None:
            session, item = found
            if isinstance(item, Gap):
                gap = self._gap(session, item)
                if self._kept is not None:
                    self._kept.raw(gap)
                return gap
            frame = self._frame(item)
            if self._kept is not None:
                seq = self._sessions.attached[session].sent
                self._kept.event(session.id, seq, has_frame=frame is not None)
            if frame is not None:
                return frame
        return None

    def _frame(self, event: bytes) -> bytes | None:
        """What the client gets for an event of a session; None: nothing."""
        if not self._plain:
            return addressed(event, self.id)
        text = as_plain_text(json.loads(event))
        return None if text is None else text.encode(errors="replace")

    async def _read_older(self, session: Session) -> None:
        """Reads from the journal what is not in memory any more."""
        reader = self._sessions.attached[session]
        if (gap := await session.fill(reader)) is not None:
            self.send(self._gap(session, gap))

    def _gap(self, session: Session, gap: Gap) -> bytes:
        notice = Event(protocol.NOTICE, describe(gap))
        return addressed(encode(notice, session_id=session.id), self.id)

    def tell(self, event: Event, *, session_id: str | None = None) -> None:
        """Sends an event that is in no session's sequence."""
        if not self._plain:
            self.send(addressed(encode(event, session_id=session_id), self.id))
        elif (text := as_plain_text({"event": event.event, "content": event.content})) is not None:
            self.send(text)

    def send(self, frame: str | bytes) -> None:
        data = frame.encode(errors="replace") if isinstance(frame, str) else frame
        if self._kept is not None:
            self._kept.raw(data)
        self._answers.append(data)
        self.wake()

    async def _pong(self, pong: Pong) -> None:
        await self._answers.have_room()
        self.send(pong)

    def _say_hello(self) -> None:
        if not self._greeted:
            self._greeted = True
            self.tell(Event(protocol.CONNECTED, {"connection_id": self.id}))

    async def _greet(self) -> None:
        with trio.move_on_after(GREETING_DELAY_S):
            await self._spoke.wait()
        if self._plain is None:
            self._say_hello()

    async def _beat(self) -> None:
        await self._spoke.wait()
        while not self._plain:
            await trio.sleep(HEARTBEAT_S)
            # An idle limit on the way counts these too; they must not keep a dead client alive.
            if trio.current_time() < self._heard + QUIET_S or any(s.busy for s in self._sessions.attached):
                self.tell(Event(protocol.HEARTBEAT))


def _whose(frame: str | bytes) -> ClientEvent | None:
    """A frame that is refused unread, read for the `step_id` alone, so that its sender knows which it was."""
    try:
        return parse(text_of(frame, 0))
    except BadInput:
        return None
