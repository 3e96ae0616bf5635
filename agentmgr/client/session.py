"""A conversation with an agent, for programs. It survives its connections:

    async with open_session("ws://localhost:9090") as session:
        print(await session.ask("hello"))

        turn = await session.send("and now slowly")
        async for event in turn:
            if event.event == "agent.partial_answer":
                print(event.content, end="", flush=True)

When the connection breaks, it is made again and the session taken up where it was: no event is lost or seen
twice, no message is taken twice. Where the agent could not keep everything, a `system.notice` with the code
`gap` stands for what is missing.
"""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from .. import protocol
from ..errors import AgentManagerError, AgentUnreachable, NotAnAgent, SessionLost
from ..protocol import ErrorCode, LossReason, NoticeCode
from ..websocket.sockets import Dial
from .events import AgentEvent, decode, encode
from .http import check_loop
from .talk import Talk
from .transport import CannotConnect, parse_url, with_connection

CLOSE_TIMEOUT_S = 2.0
ESTABLISH_TIMEOUT_S = 15.0
SILENCE_S = 40.0
"""The agent's heartbeat comes every 30 s; after this long without a word it is asked, and then given up."""
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 5.0
ACK_EVERY, ACK_DELAY_S = 32, 0.2
"""Events are acknowledged by the dozen, and when no more come for a moment: the agent may wait for it."""
BUFFERED_EVENTS = 1024
"""Events that wait for the program to take them; beyond that, the agent waits too."""

_TRY_AGAIN = (ErrorCode.SESSION_ELSEWHERE, ErrorCode.SESSION_UNREACHABLE, ErrorCode.DRAINING)
"""Another connection may find the session, or the same agent later."""


@asynccontextmanager
async def open_session(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    session_id: str | None = None,
    last_seq: int = 0,
    reconnect_for_s: float = 60.0,
    on_disconnect: Callable[[], None] | None = None,
    locate: Callable[[], Awaitable[str]] | None = None,
    dial: Dial = trio.open_tcp_stream,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[AgentSession]:
    """Begins a session, or takes up the one named by `session_id` after event `last_seq`.
    `on_disconnect` is called when the connection breaks, before it is made again; `locate` then says where
    the agent is by now, for one that may come back at another address. `dial` makes the connections, given
    host and port. `ssl_context` is for `wss://` where the system does not trust whom you trust.

    Raises `AgentUnreachable` when the first connection cannot be made, `NotAnAgent` when another WebSocket
    server answers, `SessionLost` when the session to take up is not there, `InvalidRequest` for something
    that is no WebSocket URL.
    """
    check_loop()
    parse_url(url)
    session = AgentSession(
        url, headers or {}, session_id, last_seq, reconnect_for_s, on_disconnect, locate, dial, ssl_context
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session._run)
        try:
            await session._established()
            yield session
        except Exception as error:  # the caller's own: it leaves as it is, not as the nursery's group
            failure = error
        session._close()
        nursery.cancel_scope.deadline = trio.current_time() + CLOSE_TIMEOUT_S
    if failure is not None:
        raise failure


class AgentSession(Talk):
    """Made by `open_session`."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        session_id: str | None,
        last_seq: int,
        reconnect_for_s: float,
        on_disconnect: Callable[[], None] | None,
        locate: Callable[[], Awaitable[str]] | None,
        dial: Dial,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.session_id = session_id
        self.last_seq = last_seq  #: of the last event taken in; with `session_id` it resumes elsewhere
        self._url = url
        self._headers = list(headers.items())
        self._reconnect_for_s = reconnect_for_s
        self._on_disconnect = on_disconnect
        self._locate = locate
        self._dial = dial
        self._ssl_context = ssl_context
        self._arrived, self._incoming = trio.open_memory_channel[AgentEvent](math.inf)
        self._room = trio.Event()
        self._established_once = trio.Event()
        self._failure: AgentManagerError | None = None
        # What the agent may not have received, by step_id; all of it is sent again on a new connection.
        self._unconfirmed: dict[str, str] = {}
        self._to_send: list[str] = []
        self._something_to_send = trio.Event()
        self._resumed = False  # on the present connection
        self._closing = trio.Event()
        self._connection = trio.CancelScope()

    async def receive(self) -> AgentEvent:
        """The next event, of whatever turn or none.

        Raises `AgentUnreachable` when no connection could be made for `reconnect_for_s`, and `SessionLost`.
        """
        self._room.set()
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise self._failure or AgentUnreachable("the session is closed") from None

    def receive_nowait(self) -> AgentEvent:
        """The next event that is here already. Raises `trio.WouldBlock`, and `trio.EndOfChannel`."""
        return self._incoming.receive_nowait()

    def cut(self) -> None:
        """Drops the connection as a broken network would; a new one is made at once."""
        self._connection.cancel()

    # What follows runs in the background task of `open_session`.

    async def _run(self) -> None:
        async with self._arrived:
            try:
                await self._stay_connected()
            except AgentUnreachable as error:
                self._failure = error  # raised by `receive`
        self._established_once.set()

    async def _established(self) -> None:
        with trio.move_on_after(ESTABLISH_TIMEOUT_S) as patience:
            await self._established_once.wait()
        if patience.cancelled_caught:
            raise AgentUnreachable(f"{self._url} accepts connections, and began no session on one")
        if self._failure is not None:
            raise self._failure

    def _close(self) -> None:
        self._closing.set()
        self._something_to_send.set()
        if not self._resumed:
            self._connection.cancel()

    async def _post(self, event: str, *, key: str = "", **fields: Any) -> None:
        await trio.lowlevel.checkpoint()
        text = encode(event, session_id=self.session_id, **fields)
        if key:
            self._unconfirmed[key] = text
        self._to_send.append(text)
        self._something_to_send.set()

    async def _stay_connected(self) -> None:
        attempt, give_up_at = 0, -math.inf  # the first connection has one try
        while not self._closing.is_set():
            self._resumed = False
            problem, refusal = f"{self._url} closed the connection and began no session", None
            try:
                with trio.CancelScope() as self._connection:
                    headers = self._named(self._headers)
                    await with_connection(self._url, headers, self._speak, self._dial, self._ssl_context)
            except CannotConnect as error:
                problem, refusal = str(error), error.code
                if not error.worth_retrying:
                    raise AgentUnreachable(problem, refusal=refusal) from None
            if self._failure is not None:
                return
            if self._resumed:
                if self._on_disconnect is not None and not self._closing.is_set():
                    self._on_disconnect()
                attempt, give_up_at = 0, trio.current_time() + self._reconnect_for_s
            elif trio.current_time() >= give_up_at:
                raise AgentUnreachable(problem, refusal=refusal)
            # Half of the delay is drawn by lot: clients cut off together should not come back together.
            with trio.move_on_after(min(RETRY_FIRST_S * 2**attempt, RETRY_MAX_S) * random.uniform(0.5, 1)):
                await self._closing.wait()
            attempt += 1
            if self._locate is not None and not self._closing.is_set():
                with suppress(AgentManagerError):  # it is on its way up, or the manager is
                    self._url = await self._locate()

    def _named(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """A gateway before several instances has to know, before it connects us, who holds the session."""
        return headers if self.session_id is None else [*headers, (protocol.SESSION_HEADER, self.session_id)]

    async def _speak(self, websocket: WebSocketConnection) -> None:
        if self.session_id is None:
            hello = encode(protocol.CREATE_SESSION)
        else:
            hello = encode(protocol.RECONNECT, session_id=self.session_id, last_seq=self.last_seq)
        async with trio.open_nursery() as nursery:
            try:
                await websocket.send_message(hello)
                nursery.start_soon(self._send_posted, websocket, nursery.cancel_scope)
                await self._read(websocket)
            except ConnectionClosed:
                pass
            nursery.cancel_scope.cancel()

    async def _send_posted(self, websocket: WebSocketConnection, connection: trio.CancelScope) -> None:
        try:
            while True:
                while self._resumed and self._to_send:
                    await websocket.send_message(self._to_send.pop(0))
                if self._closing.is_set():
                    break
                self._something_to_send = trio.Event()
                await self._something_to_send.wait()
            await websocket.aclose()
        except ConnectionClosed:
            pass
        connection.cancel()

    async def _read(self, websocket: WebSocketConnection) -> None:
        asked, unacked = False, 0
        while self._failure is None:
            with trio.move_on_after(ACK_DELAY_S if unacked else SILENCE_S) as patience:
                event = decode(await websocket.get_message())
            if patience.cancelled_caught:
                if unacked:
                    unacked = 0
                    await self._ack(websocket)
                    continue
                if asked:
                    return
                asked = True
                await websocket.send_message(encode(protocol.PING))
                continue
            asked = False
            if not self._resumed and (not event.event or event.event.startswith("user.")):
                self._failure = NotAnAgent(f"{self._url} answers with something else than an agent's events")
                return
            if not self._takes_in(event):
                continue
            self._arrived.send_nowait(event)  # at once: a cut must not fall between the books and this
            unacked += 1
            if unacked >= ACK_EVERY or event.event in protocol.TURN_ENDS:
                unacked = 0
                await self._ack(websocket)
            while self._arrived.statistics().current_buffer_used >= BUFFERED_EVENTS:
                self._room = trio.Event()
                await self._room.wait()

    async def _ack(self, websocket: WebSocketConnection) -> None:
        await websocket.send_message(encode(protocol.ACK, session_id=self.session_id, seq=self.last_seq))

    def _takes_in(self, event: AgentEvent) -> bool:
        """Keeps the books; False for what a program need not see, or has seen."""
        if event.event in (protocol.CONNECTED, protocol.HEARTBEAT, protocol.PONG):
            return False
        if event.event == protocol.ERROR:
            return self._takes_in_error(event)
        if event.event == protocol.NOTICE and event.code in (NoticeCode.RESUMED, NoticeCode.GAP):
            self.last_seq = max(self.last_seq, event.content.get("missing_to", 0))
            self._resume()
            return True
        if event.seq is not None:
            if event.seq <= self.last_seq:
                return False
            self.last_seq = event.seq
        if event.event == protocol.SESSION_CREATED:
            if self.session_id is None:
                self.session_id = event.session_id
                self._resume()
            return False
        if event.event in protocol.TURN_ENDS:  # whatever was answered or cancelled meanwhile is settled
            for key in [key for key in self._unconfirmed if not key.startswith("msg_")]:
                del self._unconfirmed[key]
        self._unconfirmed.pop(event.step_id or "", None)
        return True

    def _takes_in_error(self, event: AgentEvent) -> bool:
        if event.code == ErrorCode.SESSION_NOT_FOUND:
            self._failure = _lost(event)
            return False
        if not self._resumed and event.code in _TRY_AGAIN:
            self._connection.cancel()
            return False
        sent_again = self._unconfirmed.pop(event.step_id or "", None) is not None
        # A message is sent again after a cut; an event of its turn may have arrived, and settled it, while
        # that was under way. Only we give out its id, so a duplicate is never news.
        return not (
            event.code == ErrorCode.DUPLICATE or (sent_again and event.code == ErrorCode.UNKNOWN_STEP)
        )

    def _resume(self) -> None:
        if not self._resumed:
            self._resumed = True
            self._to_send = list(self._unconfirmed.values())
            self._something_to_send.set()
            self._established_once.set()


def _lost(event: AgentEvent) -> SessionLost:
    why = event.content.get("message") or "it was restarted, or the session has ended"
    lost = SessionLost(f"the agent no longer has this session: {why}")
    lost.reason = str(event.content.get("reason") or LossReason.UNKNOWN)
    return lost
