"""HTTP services: a request to `/services/NAME/…` goes on to an instance, and its answer back, in pieces.

A request is a connection while it lasts: it takes a seat at an instance, and ends with its token, with a
limit, when its instance is drained, and by `agentmgr disconnect`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial

import h11
import trio
from attrs import evolve

from ..core.gateway_headers import sets_login
from ..core.request import ClientRequest
from ..protocol import FAILED, NORMAL
from ..proxy.access import Identity, authenticate
from ..proxy.connections import LiveConnection
from ..proxy.dialer import DialFailed
from ..proxy.forwarded import backend_fields
from ..proxy.handshake import ClientGone
from ..proxy.intake import note
from ..proxy.lifetime import watch_limits
from ..proxy.tunnel import Ending, Tunnel
from ..proxy.upstream import gateway_fault
from ..proxy.visit import Seat, Visit
from ..telemetry import ConnectionSpan
from ..websocket.head import Fields, RequestHead, end_to_end
from ..websocket.refusal import RefusalCode
from ..websocket.sockets import Wire
from .exchange import Exchange, Route, cors, too_slow
from .problem import Headers, Problem

_CHUNK_BYTES = 64 * 1024
_FRAMING = ("Content-Length", "Transfer-Encoding")
_BOTH = {b"content-length", b"transfer-encoding"}
_NO_CONTENT = 204
_METHODS_REFUSED = ("CONNECT", "TRACE")  # no request to a service; and one that shows a proxy's own headers


class HttpServices:
    routes: Sequence[Route] = ()  #: all that is asked of a service is passed on

    def problem(self, problem: Problem) -> bytes:
        return json.dumps({"code": problem.code, "reason": problem.message}).encode() + b"\n"

    async def pass_on(self, exchange: Exchange) -> None:
        """Answers the request of a client whose page may ask. Raises `Refusal`, `Problem`, `ClientGone`."""
        intake, head = exchange.intake, exchange.request.head
        if head.method in _METHODS_REFUSED:
            raise Problem(405, "method_not_allowed", f"{head.method} is not passed on.")
        if head.wants_websocket:
            raise Problem(400, RefusalCode.BAD_REQUEST, "A WebSocket needs a connection that had no request.")
        identity = None
        if intake.authenticator is not None:
            # A ticket in the query is for a WebSocket, and good for one; here it is the service's.
            bare, target = evolve(head, target=head.path), head.target
            identity, bare = await authenticate(bare, intake.authenticator)
            head = evolve(bare, target=target)
        connection_id = f"con_{secrets.token_hex(8)}"
        with intake.traced(head, connection_id, exchange.request.client_ip) as (head, span):
            await self._pass_on(exchange, head, identity, connection_id, span)

    async def _pass_on(
        self,
        exchange: Exchange,
        head: RequestHead,
        identity: Identity | None,
        connection_id: str,
        span: ConnectionSpan | None,
    ) -> None:
        intake, began = exchange.intake, trio.current_time()
        with intake.token_scopes.open(identity) as token_scope:
            request = ClientRequest(head.target, exchange.request.client_ip, exchange.peer.port, head.by_name)
            services = identity.services if identity else None
            visit = Visit(request, services, left=exchange.wait_gone)
            asked = _asked(exchange, head, request.address[1], connection_id, identity)
            async with AsyncExitStack() as place:
                seat, wire = await _find(exchange, visit, place)
                tunnel = Tunnel(
                    exchange.wire, wire, max_message_bytes=seat.backend.max_message_bytes, now=began
                )
                connection = LiveConnection(
                    connection_id,
                    request=request,
                    backend=seat.backend,
                    rule=seat.pool.rule,
                    tunnel=tunnel,
                    handshake_s=trio.current_time() - began,
                )
                if token_scope is not None:
                    token_scope.opened(connection)
                if span is not None:
                    place.callback(note, span, connection)
                passing = _Passing(
                    exchange, connection, wire, asked, partial(intake.lobby.opened, visit, seat)
                )
                with intake.connections.open(connection):
                    try:
                        await passing.run()
                    finally:
                        if passing.fault is not None:
                            intake.lobby.failed(visit, seat)


async def _find(exchange: Exchange, visit: Visit, place: AsyncExitStack) -> tuple[Seat, Wire]:
    """An instance that is there: its seat and its wire are `place`'s. Raises `Refusal`, `ClientGone`."""
    intake, limits = exchange.intake, exchange.intake.limits
    failure = DialFailed("no instance was tried", retry=True)
    began = trio.current_time()
    for _ in range(limits.max_tries):
        async with AsyncExitStack() as tried:
            seat = await tried.enter_async_context(intake.lobby.seat(visit))
            if seat is None:
                break
            try:
                wire, _ = await intake.dialer.reach(
                    seat.backend, limits, deadline=began + limits.longest_wait_s(visit.starts_within)
                )
            except DialFailed as fault:
                failure = fault
                if fault.outdated:
                    await intake.lobby.outdated(visit, seat)
                else:
                    intake.lobby.failed(visit, seat, blame=fault.blame)
                continue
            tried.enter_context(closing(wire))
            place.push_async_exit(tried.pop_all())
            return seat, wire
    raise gateway_fault(failure)


def _asked(
    exchange: Exchange, head: RequestHead, target: str, connection_id: str, identity: Identity | None
) -> h11.Request:
    """What the instance is asked. Raises `Problem`."""
    fields = backend_fields(
        head,
        peer=exchange.peer.address,
        trusted=exchange.intake.trusted_with(exchange.peer),
        secure=exchange.secure,
        connection_id=connection_id,
        identity=identity.name if identity else None,
    )
    # How the body is framed is no matter of the fields that `Connection` takes off.
    framing = tuple((name, head.by_name[low]) for name in _FRAMING if (low := name.lower()) in head.by_name)
    kept = tuple(item for item in fields if item[0].lower() != "content-length")
    try:
        return h11.Request(
            method=head.method, target=target, headers=[*kept, *framing, ("Connection", "close")]
        )
    except h11.LocalProtocolError as error:
        raise Problem(400, RefusalCode.BAD_REQUEST, f"This cannot be passed on: {error}.") from None


class _Passing:
    """One request on its way to the instance, and its answer on its way back."""

    def __init__(
        self,
        exchange: Exchange,
        connection: LiveConnection,
        wire: Wire,
        asked: h11.Request,
        on_answer: Callable[[], None],
    ) -> None:
        """`on_answer`: called when the answer has begun."""
        self._exchange, self._connection, self._wire, self._asked = exchange, connection, wire, asked
        self._on_answer = on_answer
        self._limits = exchange.intake.limits
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.head_bytes)
        self._raised: ClientGone | Problem | None = None
        self.fault: str | None = None  #: what was wrong with the instance's answer

    async def run(self) -> None:
        """Raises `Problem`, `ClientGone`."""
        connection = self._connection
        connection.is_request = connection.awaits_answer = True
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                connection.ending = await watch_limits(connection, self._limits)
                nursery.cancel_scope.cancel()

            async def ask() -> None:
                try:
                    await self._ask()
                except (ClientGone, Problem) as error:
                    self._raised = error
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            nursery.start_soon(ask)
            try:
                await self._answer()
            except (ClientGone, Problem) as error:
                self._raised = error
            nursery.cancel_scope.cancel()
        self._close()

    def _close(self) -> None:
        """Says how it ended. Raises `Problem`, `ClientGone`."""
        connection, error = self._connection, self._raised
        tunnel, limit_s = connection.tunnel, connection.backend.idle_timeout
        if isinstance(error, ClientGone):
            connection.ending = Ending("client", None, str(error), abrupt=True)
        elif error is not None:
            by = "gateway" if self.fault is None else "backend"
            code = None if self.fault is not None else FAILED
            connection.ending = Ending(by, code, self.fault or error.message)
        if error is not None:
            raise error
        if connection.ending.by != "gateway":
            return
        reason = f"The request was ended: {connection.ending.reason}."
        if limit_s and trio.current_time() - tunnel.last_data >= limit_s:
            raise Problem(504, RefusalCode.BACKEND_TIMEOUT, reason, retry=False)
        raise Problem(503, RefusalCode.NO_SERVICE_AVAILABLE, reason, retry=False)

    # To the instance

    async def _ask(self) -> None:
        """Sends the request; then returns once the client has left. Raises `Problem`, `ClientGone`."""
        exchange, parser, flow = self._exchange, self._parser, self._connection.tunnel.from_client
        most = self._connection.backend.max_message_bytes
        too_large = Problem(413, "too_large", f"The body is over {most} bytes (--max-message-bytes).")
        length = exchange.request.head.by_name.get("content-length", "0")
        if most and length.isdecimal() and int(length[:19]) > most:
            raise too_large
        taken = await self._tell(parser.send(self._asked))
        try:
            while True:
                with trio.fail_after(self._limits.stall_timeout_s):
                    data = await exchange.more(give_leave=False)
                if not data:
                    break
                flow.bytes += len(data)
                flow.last_data = trio.current_time()
                if most and flow.bytes > most:
                    raise too_large
                taken = taken and await self._tell(parser.send(h11.Data(data=data)))
        except trio.TooSlowError:
            raise too_slow() from None
        flow.tracker.messages += 1
        if taken:
            await self._tell(parser.send(h11.EndOfMessage()))
        await exchange.wait_gone()
        raise ClientGone("it left before its answer was complete")

    async def _tell(self, data: bytes | None) -> bool:
        """Whether the instance takes it: one that answers early, with an error perhaps, may not."""
        try:
            with trio.move_on_after(self._limits.stall_timeout_s) as patience:
                await self._wire.send_all(data or b"")
        except OSError:
            return False
        return not patience.cancelled_caught

    # From the instance

    async def _answer(self) -> None:
        """Raises `Problem`, `ClientGone`."""
        exchange, connection = self._exchange, self._connection
        flow, asked_at = connection.tunnel.from_backend, trio.current_time()
        status = 0
        while True:
            match await self._event():
                case h11.InformationalResponse() as early:
                    await exchange.inform(early.status_code, _passed_on(early, exchange))
                case h11.Response() as head:
                    self._on_answer()
                    status, connection.awaits_answer = head.status_code, False
                    connection.tunnel.first_byte_s = trio.current_time() - asked_at
                    flow.last_data = trio.current_time()
                    await exchange.head(status, _passed_on(head, exchange), head.reason)
                case h11.Data() as piece:
                    flow.bytes += len(piece.data)
                    flow.last_data = trio.current_time()
                    await exchange.pass_on(bytes(piece.data))
                case _:  # its end
                    break
        await exchange.end()
        flow.tracker.messages += 1
        code = NORMAL if status < 500 else FAILED
        connection.ending = Ending("backend", code, f"HTTP status {status}", abrupt=True)

    async def _event(self) -> h11.Event:
        """What comes next, up to the end of the answer. Raises `Problem`."""
        await trio.lowlevel.checkpoint()  # it may send faster than all others are served
        try:
            while (event := self._parser.next_event()) is h11.NEED_DATA:
                data = await self._wire.receive(_CHUNK_BYTES)
                if not data and not self._exchange.begun:
                    raise h11.RemoteProtocolError("it closed the connection before its answer was complete")
                self._parser.receive_data(data)
            if isinstance(event, h11.Response) and {name for name, _ in event.headers} >= _BOTH:
                raise h11.RemoteProtocolError("it has both a Content-Length and a Transfer-Encoding")
        except (OSError, h11.RemoteProtocolError) as error:
            self.fault = str(error)
            reason = f"The service did not answer as HTTP wants it: {error}."
            raise Problem(502, RefusalCode.BAD_GATEWAY, reason, retry=False) from None
        assert not isinstance(event, type)
        return event


def _passed_on(head: h11.Response | h11.InformationalResponse, exchange: Exchange) -> Headers:
    """Where the gateway says which pages may read an answer, the service does not.

    An answer that has no body has no length either (RFC 9110, section 8.6): its reader might wait for one.
    """
    fields: Fields = tuple(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()
    )
    nominated = ", ".join(value for name, value in fields if name.lower() == "connection")
    dropped = set()
    if cors(exchange.intake, exchange.request.head):
        dropped.add("access-control-allow-origin")
    if head.status_code < 200 or head.status_code == _NO_CONTENT:
        dropped.add("content-length")
    return tuple(
        (name, value)
        for name, value in end_to_end(fields, {"connection": nominated})
        if not sets_login(name, value) and name.lower() not in dropped
    )
