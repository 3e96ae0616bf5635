"""The Responses API over a WebSocket: `response.create` in, the events of responses out.

Responses of one `stream_id` are made one after another, those of several at the same time. What is not
stored can be gone on with here, as long as it is the newest of its `stream_id`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import trio
from attrs import evolve
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from ..protocol import BEARER, COME_BACK, NORMAL, POLICY, TOO_BIG, TOO_SLOW
from ..proxy.access import authenticate
from ..proxy.forwarded import Peer
from ..proxy.handshake import ClientGone, switch_protocols
from ..proxy.intake import Intake
from ..websocket.frames import TEXT_MESSAGE, frame_head
from ..websocket.head import RequestHead, ResponseHead, check_upgrade
from ..websocket.refusal import Refusal
from ..websocket.sockets import Wire
from .bounds import Held, Memory
from .exchange import Exchange
from .http import INTERNAL, check_page, most_bytes
from .openai_chat import error_of
from .openai_input import ResponsesRequest
from .openai_responses import Out, in_json
from .problem import Problem, invalid, optional
from .responses import Responses

logger = logging.getLogger("agentmgr.gateway")
_Asked = tuple[Exchange, ResponsesRequest]
MOST_STREAMS = 16
MOST_WAITING = 16  #: messages of one stream
_CHUNK_BYTES = 64 * 1024


async def serve(
    intake: Intake, wire: Wire, head: RequestHead, peer: Peer, responses: Responses, memory: Memory
) -> None:
    """One client, to its end. Raises `Refusal`, `ClientGone`."""
    check_upgrade(head)
    with intake.requests.admit(intake.client_ip(head, peer), trio.current_time()):
        check_page(intake, head)
        identity = None
        if intake.authenticator is not None:
            # A ticket in the query is good for one connection, and each response has one of its own.
            head = evolve(head, target=head.path)
            identity, _ = await authenticate(head, intake.authenticator)
            for entry in head.subprotocols:
                if entry.startswith(BEARER) and "authorization" not in head.by_name:
                    head = head.replaced("Authorization", f"Bearer {entry.removeprefix(BEARER)}")
        await switch_protocols(wire, head, ResponseHead(101, (), {}))

        def exchange_of(body: bytes) -> Exchange:
            exchange = Exchange(intake, wire, peer, head, memory)
            exchange.request = evolve(exchange.request, identity=identity, body=body)
            exchange.body.set(len(body))
            return exchange

        await _Socket(intake, wire, responses, exchange_of, memory.held()).run()


class _Socket:
    def __init__(
        self,
        intake: Intake,
        wire: Wire,
        responses: Responses,
        exchange_of: Callable[[bytes], Exchange],
        receiving: Held,
    ) -> None:
        self._intake, self._wire, self._responses = intake, wire, responses
        self._exchange_of, self._receiving = exchange_of, receiving
        self._connection = Connection(ConnectionType.SERVER)
        self._streams: dict[str | None, deque[_Asked]] = {}  # what waits, of those that are busy
        self._newest: dict[str | None, str] = {}  # the session of what is not stored, by stream
        self._sending = trio.Lock()
        self._half_sent = False

    async def run(self) -> None:
        code, reason = COME_BACK, "the gateway is being stopped"
        try:
            async with trio.open_nursery() as nursery:
                with suppress(OSError, ClientGone):
                    code, reason = await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._receiving.close()
            for session_id in self._newest.values():
                self._responses.forget(session_id)
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + self._intake.limits.close_timeout_s
                with suppress(OSError, ClientGone, LocalProtocolError):
                    await self._write(self._connection.send(CloseConnection(code, reason)))
                    await self._closed()

    async def _closed(self) -> None:
        """Waits until the client has answered the close frame. Raises `OSError`, `LocalProtocolError`."""
        while self._connection.state is not ConnectionState.CLOSED:
            if not (data := await self._wire.receive(_CHUNK_BYTES)):
                return
            self._connection.receive_data(data)
            for _ in self._connection.events():
                pass

    async def _read(self, nursery: trio.Nursery) -> tuple[int, str]:
        """Until the client closes; how that is answered. Raises `OSError`, `ClientGone`."""
        most = most_bytes(self._intake)
        parts, size, data = list[str](), 0, self._wire.ahead
        while True:
            self._connection.receive_data(data)
            for event in self._connection.events():
                match event:
                    case CloseConnection():
                        broke = self._connection.state is ConnectionState.OPEN
                        return (event.code, event.reason or "") if broke else (NORMAL, "")
                    case Ping():
                        await self._write(self._connection.send(event.response()))
                    case BytesMessage():
                        return POLICY, "messages are text"
                    case TextMessage():
                        parts.append(event.data)
                        size += len(event.data)
                        if size > most:
                            return TOO_BIG, f"a message is over {most} bytes"
                        try:
                            self._receiving.set(size)
                        except Problem as problem:
                            return TOO_SLOW, problem.message
                        if event.message_finished:
                            await self._take("".join(parts), nursery)
                            parts, size = [], 0
                            self._receiving.close()
            if not (data := await self._wire.receive(_CHUNK_BYTES)):
                raise ClientGone("it left")

    async def _take(self, text: str, nursery: trio.Nursery) -> None:
        """Raises `ClientGone`."""
        stream = None
        try:
            exchange = self._exchange_of(text.encode())
            del text
            stream, asked = await exchange.read(_frame)
            if isinstance(asked, Problem):
                raise asked
            waiting = self._streams.get(stream)
            if waiting is None and len(self._streams) >= MOST_STREAMS:
                raise Problem(429, "queue_full", f"{MOST_STREAMS} streams are busy already.")
            if waiting is not None and len(waiting) >= MOST_WAITING:
                raise Problem(429, "queue_full", f"{MOST_WAITING} messages wait already.")
        except Problem as problem:
            await self._send([_error(problem)], stream)
            return
        if waiting is not None:
            waiting.append((exchange, asked))
        else:
            self._streams[stream] = deque([(exchange, asked)])
            nursery.start_soon(self._work, stream, nursery.cancel_scope)

    async def _work(self, stream: str | None, whole: trio.CancelScope) -> None:
        """Answers what waits there."""
        waiting = self._streams[stream]
        try:
            while waiting:
                exchange, asked = waiting.popleft()
                try:
                    await self._respond(exchange, asked, stream)
                except Refusal as refusal:
                    await self._send([_error(Problem.of(refusal))], stream)
                except Problem as problem:
                    await self._send([_error(problem)], stream)
                except ClientGone:
                    raise
                except Exception:  # the boundary: a fault of ours is an answer in the client's protocol too
                    logger.exception("internal error in a front: a response was not made")
                    await self._send([_error(INTERNAL)], stream)
                finally:
                    exchange.body.close()
        except ClientGone:
            whole.cancel()
        finally:
            for exchange, _ in waiting:
                exchange.body.close()
            del self._streams[stream]

    async def _respond(self, exchange: Exchange, asked: ResponsesRequest, stream: str | None) -> None:
        """Raises `Problem`, `Refusal`, `ClientGone`."""
        stays = not asked.store
        starting = self._responses.begin(exchange, asked, stays=stays)
        del asked
        async with starting as response:
            await self._send(response.made, stream)
            while not response.events.finished:
                await self._send(await response.more(), stream)
        if (before := self._newest.pop(stream, None)) not in (None, response.source.session_id):
            self._responses.forget(str(before))
        if stays and response.source.session_id:
            self._newest[stream] = response.source.session_id

    async def _send(self, events: list[Out], stream: str | None) -> None:
        """Raises `ClientGone`."""
        mark = {} if stream is None else {"stream_id": stream}
        texts = [in_json(each | mark) for each in events]
        await self._write(b"".join(frame_head(TEXT_MESSAGE, len(text)) + text for text in texts))

    async def _write(self, data: bytes) -> None:
        """Writes all of it. Raises `ClientGone`, also if the client reads nothing for `stall_timeout_s`."""
        async with self._sending:
            if self._half_sent:
                raise ClientGone("what it was sent was broken off")
            self._half_sent = True
            view = memoryview(data)
            try:
                while view:
                    with trio.fail_after(self._intake.limits.stall_timeout_s):
                        view = view[await self._wire.send_some(view) :]
            except (OSError, trio.TooSlowError):
                raise ClientGone("it left, or did not read its answer") from None
            self._half_sent = False


def _frame(fields: Mapping[str, object]) -> tuple[str | None, ResponsesRequest | Problem]:
    """The stream of a message, and what it asks for, or what is wrong with it. Raises `Problem`."""
    stream = optional(fields, "stream_id", str)
    try:
        if fields.get("type") != "response.create":
            raise invalid("type", "must be response.create")
        if fields.get("generate") is False:
            raise invalid("generate", "must be true: an agent answers")
        return stream, ResponsesRequest.of(fields)
    except Problem as problem:
        return stream, problem


def _error(problem: Problem) -> Out:
    return {"type": "error", "status": problem.status, **error_of(problem)}
