"""Serves one agent on one listener.

`trio_websocket.serve_websocket` would end with its first bad client. Here each connection has a nursery, a
boundary and deadlines of its own, and its request's head is read and judged before a WebSocket is made of it.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from ..boundary import Failure, contain, report
from ..core.gateway_headers import CONNECTION_HEADER, HOST_HEADER, IDENTITY_HEADER, RESUMED_HEADER
from ..core.proof import DRAIN_PATH, HEALTH_PATH
from ..core.request import ClientRequest
from ..protocol import BEARER, COME_BACK, FAILED, NORMAL
from ..websocket.head import HeadReader, RequestHead, check_upgrade, upgrade_request
from ..websocket.refusal import JSON, Refusal, RefusalCode, http_response
from ..websocket.sockets import tune
from . import health
from .adapt import HostedAgent, RawAgent
from .client_link import ClientLink
from .door import Door, believed
from .drain import Drain, Unseen
from .link_resume import Resumption, asked_for, kept_of, resume
from .link_stream import LinkStream, part
from .message import Client
from .session_registry import SessionRegistry

logger = logging.getLogger("agentmgr.agent")

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MANY_WAITING = 64
"""Beyond so many whose requests have not come, other users of the machine are turned away as they connect:
else they could use up the usual limit of 1024 open files, and no gateway came through."""
LOST = 1006  #: how trio-websocket says that no close frame came
_CONNECTION_ID = re.compile(r"con_[0-9a-f]{1,64}")


class AgentServer:
    """Takes connections for an agent; `sessions` outlive them."""

    def __init__(
        self,
        agent: HostedAgent,
        sessions: SessionRegistry,
        *,
        token: str = "",
        door: Door | None = None,
    ) -> None:
        """`door`: who may connect; by default the holder of `token` and this user's own programs."""
        self._agent = agent
        self._sessions = sessions
        self._token = token
        self._door = door or Door(token)
        self._max_message_bytes = sessions.limits.max_message_bytes
        self._accepting = trio.CancelScope()
        self._drain = Drain(sessions, can_tell=not isinstance(agent, RawAgent))
        self._closers: set[Callable[[], None]] = set()  # each ends one connection in good order
        self._links: dict[str, ClientLink] = {}  # those that can be resumed
        self._going_away = False
        self._waiting = 0  # connections whose request has not come yet, or is being refused

    async def serve(
        self,
        listener: trio.abc.Listener[trio.SocketStream],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled, or until `go_away` was called and every client is gone."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await trio.serve_listeners(
                    self._serve_connection, [listener], handler_nursery=nursery, task_status=task_status
                )

    def go_away(self) -> None:
        """Takes no more connections and gives the sessions up; the close code asks clients to come back."""
        self._going_away = True
        self._accepting.cancel()
        self._sessions.leave_all()
        for close in list(self._closers):
            close()

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        # The boundary of a connection: a client, however it behaves, ends its own connection at most.
        try:
            tune(stream.socket)
            outcome = await contain(lambda: self._converse(stream))
            if isinstance(outcome, Failure):
                report("a connection failed", outcome.error, level=logging.DEBUG)
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        if self._waiting >= MANY_WAITING and self._door.keeps_out(stream.socket):
            return
        with self._counted_as_waiting():
            try:
                with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                    found = await self._next_upgrade(stream)
                    if found is None:
                        return
                    request, rest = found
                    is_probe = request.path == HEALTH_PATH
                    subject = request.target if is_probe else request.key
                    try:
                        gateway, stranger = self._door.admit(request, stream.socket, subject), False
                    except Refusal:
                        if not is_probe:
                            raise
                        gateway, stranger = False, True
                    head = believed(request, gateway=gateway)
                    client = _client_of(head, stream, gateway=gateway)
                    resumption = None
                    if not is_probe:
                        resumption = await self._resume(client) if gateway else None
                        if resumption is None or not resumption.readers:
                            await self._check_session(request, client)
            except Refusal as refusal:
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await stream.send_all(refusal.response)
                    await part(stream)
                return
        farewell: tuple[int, str | None] = NORMAL, None
        link = None
        async with trio.open_nursery() as nursery:  # trio-websocket's reader lives here
            link_stream, websocket = await self._accept(nursery, stream, head, rest, resumption)
            try:
                if is_probe:
                    await self._serve_probe(websocket, await self._report(request, stranger=stranger))
                elif isinstance(self._agent, RawAgent):
                    await self._serve_raw(self._agent, websocket)
                else:
                    link = self._link(link_stream, websocket, client, resumption)
                    farewell = await self._serve_client(link)
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    if self._going_away or self._drain.on:
                        farewell = self._drain.farewell
                    if link is None or not link.resumable or farewell[0] != COME_BACK:
                        await websocket.aclose(*farewell)
            finally:
                if link is not None:
                    # Without a close frame its gateway may have another host go on with it, or this one.
                    link.over(for_good=websocket.closed is not None and websocket.closed.code != LOST)
            nursery.cancel_scope.cancel()

    async def _next_upgrade(self, stream: trio.SocketStream) -> tuple[RequestHead, bytes] | None:
        """The first request for a WebSocket, and what came behind it; None where there is none.

        Plain probes are answered. One that asks for it keeps the connection: a gateway has the agent prove
        itself first, and then sends its client's request to the very process that did. Raises `Refusal`.
        """
        rest = b""
        while found := await _read_head(stream, rest):
            request, rest = found
            if request.path == DRAIN_PATH and not request.wants_websocket:
                await stream.send_all(_answer(await self._answer_manager(request, stream)))
                break
            if request.wants_websocket or request.path != HEALTH_PATH or request.method != "GET":
                check_upgrade(request)
                return found
            stranger = False
            try:
                self._door.admit(request, stream.socket, request.target)
            except Refusal:
                stranger = True
            stays = request.by_name.get("connection", "").lower() == "keep-alive"
            await stream.send_all(_answer(await self._report(request, stranger=stranger), stays=stays))
            if not stays:
                break
        return None

    async def _resume(self, client: Client) -> Resumption | None:
        """Where a connection that can be resumed begins; None: this one cannot be. Raises `Refusal`."""
        asked, journal = asked_for(client), self._sessions.journal
        if asked is None or journal is None or asked[0] != _link_id(client):
            return None
        link_id, delivered = asked
        if delivered is None:
            return Resumption() if journal.degraded is None else None
        before = self._links.get(link_id)
        state = await kept_of(link_id, self._sessions) if before is None else await before.abandon()
        return await resume(state, delivered, client, self._sessions)

    async def _accept(
        self,
        nursery: trio.Nursery,
        stream: trio.SocketStream,
        head: RequestHead,
        rest: bytes,
        resumption: Resumption | None,
    ) -> tuple[LinkStream, WebSocketConnection]:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S) as patience:
            # wsproto answers a bad handshake by itself and closes, and raises nothing.
            asked = upgrade_request(head.target, head.end_to_end)
            link_stream = LinkStream(stream, asked, rest, on_close=patience.cancel)
            limit = self._max_message_bytes
            request = await wrap_server_stream(
                nursery, link_stream, max_message_size=4 * limit if limit else sys.maxsize
            )
            offered = (name for name in head.subprotocols if not name.startswith(BEARER))
            fields = [(RESUMED_HEADER.encode(), resumption.answer.encode())] if resumption else []
            if not isinstance(self._agent, RawAgent):
                fields.append((HOST_HEADER.encode(), b"events"))
            websocket = await request.accept(subprotocol=next(offered, None), extra_headers=fields)
            link_stream.accepted(lambda: websocket.closed)
        return link_stream, websocket

    def _link(
        self,
        link_stream: LinkStream,
        websocket: WebSocketConnection,
        client: Client,
        resumption: Resumption | None,
    ) -> ClientLink:
        return ClientLink(
            link_stream,
            websocket,
            client,
            self._sessions,
            self._drain,
            link_id=_link_id(client),
            max_message_bytes=self._max_message_bytes,
            resumption=resumption,
        )

    async def _serve_client(self, link: ClientLink) -> tuple[int, str | None]:
        """Returns code and reason of the close frame."""
        self._links[link.id] = link
        try:
            with self._closed_by(link.close), self._drain.counting(link):
                await link.run()
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await link.left()
        finally:
            if self._links.get(link.id) is link:
                del self._links[link.id]
        if link.must_reconnect:
            return COME_BACK, "another instance goes on with the session; come back"
        return NORMAL, None

    async def _check_session(self, request: RequestHead, client: Client) -> None:
        """Takes up the session that a handshake names. Raises `Refusal`: another instance holds it."""
        if client.named_session is None:
            return
        problem = await self._sessions.is_elsewhere(client.named_session, client)
        if problem is not None:
            raise Refusal(421, RefusalCode.SESSION_ELSEWHERE, str(problem), details=problem.details)

    async def _serve_raw(self, agent: RawAgent, websocket: WebSocketConnection) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel), self._drain.counting(Unseen()):
            outcome = await contain(lambda: agent.serve(websocket))
            if isinstance(outcome, Failure) and not isinstance(outcome.error, ConnectionClosed):
                report("serve() failed", outcome.error)
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await websocket.aclose(FAILED, "the agent failed")

    async def _serve_probe(self, websocket: WebSocketConnection, report: str) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel):
            await websocket.send_message(report)
            while True:  # trio-websocket answers pings only while its messages are taken
                await websocket.get_message()

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def _closed_by(self, close: Callable[[], None]) -> Iterator[None]:
        self._closers.add(close)
        try:
            if self._going_away:
                close()
            yield
        finally:
            self._closers.discard(close)

    async def _answer_manager(self, request: RequestHead, stream: trio.SocketStream) -> str:
        """Its drain: begins it, and says how far it is. Raises `Refusal`."""
        if not self._door.admit(request, stream.socket, request.target):
            raise Refusal(403, RefusalCode.FORBIDDEN, "only the manager of this agent may ask for that")
        try:
            return await self._drain.answer(request.target, self._token)
        except ValueError as error:
            raise Refusal(400, RefusalCode.BAD_REQUEST, f"no manager asks for that: {error}") from None

    async def _report(self, request: RequestHead, *, stranger: bool) -> str:
        return await health.report(
            self._agent,
            self._sessions,
            token=self._token,
            target=request.target,
            quiet_s=self._drain.quiet_s,
            stranger=stranger,
        )


async def _read_head(stream: trio.SocketStream, received: bytes) -> tuple[RequestHead, bytes] | None:
    """A request's head, and what came behind it; None where the client leaves before it is complete.

    `received` are its first bytes. Raises `Refusal`.
    """
    reader = HeadReader()
    while data := received or await stream.receive_some(4096):
        received = b""
        if request := reader.feed(data):
            return request, reader.rest
    return None


def _answer(body: str, *, stays: bool = False) -> bytes:
    return http_response(200, (JSON,), body.encode(), stays=stays)


def _client_of(head: RequestHead, stream: trio.SocketStream, *, gateway: bool) -> Client:
    peer = stream.socket.getpeername()
    address = peer[0] if isinstance(peer, tuple) else None
    if gateway and (forwarded := head.by_name.get("x-forwarded-for")):
        address = forwarded.rpartition(",")[2].strip()
    named = ClientRequest(path=head.target, headers=head.by_name).session_id
    return Client(address, head.by_name.get(IDENTITY_HEADER.lower()), head.by_name, named)


def _link_id(client: Client) -> str:
    """The gateway's id of the connection, so that a client knows the one that `agentmgr disconnect` takes."""
    connection_id = client.headers.get(CONNECTION_HEADER.lower(), "")
    return connection_id if _CONNECTION_ID.fullmatch(connection_id) else f"lnk_{secrets.token_hex(8)}"
