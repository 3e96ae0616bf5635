"""One client, from its first byte to its last."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from typing import Protocol

import trio
from attrs import evolve, frozen

from ..core.request import ClientRequest
from ..core.routing import Router
from ..telemetry import ConnectionSpan, Telemetry
from ..websocket.head import RequestHead, ResponseHead, check_upgrade, upgrade_request
from ..websocket.refusal import Refusal, RefusalCode
from ..websocket.sockets import Wire
from .access import Authenticator, Identity, Quotas, authenticate, check_origin
from .certificate import Certificate
from .connections import Connections, LiveConnection
from .dialer import Dialer, DialFailed
from .forwarded import Networks, Peer, backend_fields, client_address, within
from .handshake import ClientGone, read_head, read_origin, refuse, switch_protocols
from .lifetime import Pacer, run_connection
from .limits import GatewayLimits
from .listener import ConnectionLimit, let_in
from .lobby import Lobby
from .proxy_protocol import BadProxyHeader
from .resuming import Resuming, asks_to, taken_in
from .token_scopes import TokenScopes
from .tunnel import Ending, Relay, Tunnel
from .upstream import BackendRefused, gateway_fault, open_backend
from .visit import Seat, Visit

logger = logging.getLogger("agentmgr.gateway")


class Fronts(Protocol):
    """Speaks other protocols on the gateway's port. Each conversation behind them is a client of the gateway
    (`Intake.let_in`), so that all that holds for clients holds for it.
    """

    @property
    def paths(self) -> str:
        """With what the paths of their requests begin, for people."""

    def take(self, head: RequestHead, router: Router) -> bool:
        """Whether this request is for one of them; any other one must be a WebSocket's."""

    async def serve(self, intake: Intake, wire: Wire, head: RequestHead, peer: Peer) -> None:
        """Answers it, and those that follow on the wire, which it leaves open. `wire.ahead`: what came behind
        the head. Raises `ClientGone`.
        """


@frozen
class Intake:
    """Everything that a client passes on its way to an instance."""

    limits: GatewayLimits
    lobby: Lobby
    connections: Connections
    token_scopes: TokenScopes
    quotas: Quotas
    requests: Quotas  #: of fronts: each has a body that is read before it becomes a client
    pacer: Pacer
    relay: Relay
    trusted: Networks
    allowed_origins: frozenset[str] | None
    authenticator: Authenticator | None
    certificate: Certificate | None
    proxy_protocol: bool
    dialer: Dialer
    fronts: Fronts | None
    telemetry: Telemetry | None
    nursery: trio.Nursery  #: of all clients
    connection_limit: ConnectionLimit

    async def serve(self, wire: Wire, address: tuple[str, int]) -> None:
        """Serves one client; returns when its connection is over, or when it has been refused one."""
        await self._serve(wire, Peer(*address), self._introduce)

    def let_in(self, wire: Wire, peer: Peer, *, resumes: bool = True) -> None:
        """Serves a client for which a front speaks, and closes the wire: a socket of this process.

        `resumes`: another instance may go on with its connection; what it has there is worth it.
        """

        async def as_it_came(_wire: Wire, peer: Peer) -> Peer:
            return peer

        async def serve(wire: Wire, _address: tuple[str, int]) -> None:
            await self._serve(wire, peer, as_it_came, resumes=resumes)

        let_in(wire, (peer.address, peer.port), serve, self.nursery, self.connection_limit)

    async def _serve(
        self,
        wire: Wire,
        peer: Peer,
        introduce: Callable[[Wire, Peer], Awaitable[Peer]],
        *,
        resumes: bool = True,
    ) -> None:
        connection_id = f"con_{secrets.token_hex(8)}"
        try:
            head, peer = await self._head(wire, peer, introduce)
            if self.fronts is not None and self.fronts.take(head, self.lobby.router):
                await self.fronts.serve(self, wire, head, peer)
            else:
                check_upgrade(head, "" if self.fronts is None else self.fronts.paths)
                if self.telemetry is None:  # a frame less, for as long as the connection lasts
                    admitted = self._admit(wire, peer, head, connection_id, None, resumes=resumes)
                    del head  # `_admit` drops it
                    await admitted
                    return
                with self.traced(head, connection_id, self.client_ip(head, peer)) as (head, span):
                    await self._admit(wire, peer, head, connection_id, span, resumes=resumes)
        except (Refusal, BackendRefused) as refusal:
            # Not its reason, in which words of the client's query may stand.
            known = {"connection_id": connection_id, "client_ip": peer.address}
            logger.debug("client refused: %s", refusal.code, extra=known)
            self.connections.refused(refusal.code)
            with trio.move_on_after(self.limits.close_timeout_s):
                await refuse(wire, refusal.response)
        except ClientGone:
            pass

    @contextmanager
    def traced(
        self, head: RequestHead, connection_id: str, client_ip: str
    ) -> Iterator[tuple[RequestHead, ConnectionSpan | None]]:
        """The head with which the instance knows of what it is a part, and the span, if there is one."""
        if self.telemetry is None:
            yield head, None
            return
        facts = {
            "http.request.method": head.method,
            "url.path": head.path,
            "client.address": client_ip,
            "agentmgr.connection_id": connection_id,
        }
        kind = "WebSocket" if head.wants_websocket else head.method
        with self.telemetry.connection(kind, head.by_name, facts) as span:
            for header, value in span.passed_on.items():
                head = head.replaced(header, value)
            yield head, span

    async def _head(
        self, wire: Wire, peer: Peer, introduce: Callable[[Wire, Peer], Awaitable[Peer]]
    ) -> tuple[RequestHead, Peer]:
        try:
            with trio.fail_after(self.limits.head_timeout_s):
                peer = await introduce(wire, peer)
                return await read_head(wire, self.limits), peer
        except trio.TooSlowError:
            raise Refusal(408, RefusalCode.REQUEST_TIMEOUT, "the request's head took too long") from None

    async def _introduce(self, wire: Wire, peer: Peer) -> Peer:
        """What comes before the request: a proxy's word whose it is, and TLS."""
        if self.proxy_protocol:
            peer = await self._introduced(wire, peer)
        if self.certificate is not None:
            await _start_tls(wire, self.certificate)
        return peer

    async def _introduced(self, wire: Wire, proxy: Peer) -> Peer:
        """Whose connection a proxy says that it passes on. Raises `Refusal`, `ClientGone`."""
        if not within(proxy.address, self.trusted):
            reason = "only trusted proxies connect here, with the PROXY protocol"
            raise Refusal(403, RefusalCode.PROXY_NOT_TRUSTED, reason)
        try:
            origin = await read_origin(wire)
        except BadProxyHeader as error:
            raise Refusal(400, RefusalCode.BAD_PROXY_HEADER, f"no good PROXY header: {error}") from None
        if origin.client is None:
            return evolve(proxy, anonymous=True)
        return Peer(*origin.client, secure=origin.secure)

    async def _admit(
        self,
        wire: Wire,
        peer: Peer,
        head: RequestHead,
        connection_id: str,
        span: ConnectionSpan | None,
        *,
        resumes: bool,
    ) -> None:
        """Finds an instance that takes the client, and stays with the two until their connection ends."""
        limits, began = self.limits, trio.current_time()
        client_ip = self.client_ip(head, peer)
        with self.quotas.admit(client_ip, trio.current_time()):
            check_origin(head, self.allowed_origins, self.lobby.router.own_pages)
            identity = None
            if self.authenticator is not None:
                identity, head = await authenticate(head, self.authenticator)
            with self.token_scopes.open(identity) as token_scope:
                visit = Visit(
                    ClientRequest(head.target, client_ip, peer.port, head.by_name),
                    identity.services if identity else None,
                    left=partial(wire.wait_gone, limits.early_bytes),
                )
                asked = self._asked(visit, head, wire, peer, connection_id, identity)
                async with AsyncExitStack() as place:
                    seat, backend, answer = await self._find(visit, asked, head, connection_id, place)
                    handshake_s = trio.current_time() - began
                    connection = _connection(connection_id, visit, seat, wire, backend, handshake_s)
                    if token_scope is not None:
                        token_scope.opened(connection)
                    if span is not None:
                        place.callback(note, span, connection)
                    resume = None
                    if resumes and seat.backend.resume_within and taken_in(answer) is not None:
                        resume = self._resuming(connection, wire, asked, place).resume
                    with self.connections.open(connection):
                        try:
                            # Shielded: a client that has its 101 also gets a close frame.
                            with trio.fail_after(limits.close_timeout_s, shield=True):
                                await switch_protocols(wire, head, answer)
                        except (ClientGone, trio.TooSlowError) as gone:
                            connection.ending = Ending("client", None, str(gone), abrupt=True)
                            return
                        # Connections last, and so does this frame; the heads are half of its memory.
                        del visit, head, asked, answer, seat, backend
                        await run_connection(
                            connection,
                            self.relay,
                            self.pacer,
                            limits,
                            loss_code=self.lobby.loss_code,
                            resume=resume,
                        )

    async def _find(
        self, visit: Visit, asked: bytes, head: RequestHead, connection_id: str, place: AsyncExitStack
    ) -> tuple[Seat, Wire, ResponseHead]:
        """An instance that takes the client: its seat and its wire are `place`'s. Raises `Refusal`."""
        limits, lobby = self.limits, self.lobby
        failure = DialFailed("no instance was tried", retry=True)
        began = trio.current_time()
        home_deadline = began + limits.queue_timeout_s
        tries = 0
        while tries < limits.max_tries:
            async with AsyncExitStack() as tried:
                seat = await tried.enter_async_context(lobby.seat(visit))
                if seat is None:
                    break
                try:
                    backend, answer = await open_backend(
                        seat.backend,
                        asks_to(asked, connection_id) if seat.backend.resume_within else asked,
                        head,
                        limits,
                        deadline=began + limits.longest_wait_s(visit.starts_within),
                        dialer=self.dialer,
                    )
                except DialFailed as fault:
                    failure = fault
                    known = {"connection_id": connection_id, "instance_id": seat.backend.instance_id}
                    logger.info("instance did not accept the client: %s", fault.reason, extra=known)
                    if fault.holder is not None:
                        lobby.moved(visit, seat, fault.holder)
                    elif fault.outdated:
                        await lobby.outdated(visit, seat)
                    else:
                        lobby.failed(visit, seat, blame=fault.blame)
                    # Its home is tried for as long as a client waits for anything.
                    home = seat.pool.home and fault.holder is None
                    tries += not home
                    if not fault.retry or (home and trio.current_time() >= home_deadline):
                        break
                    continue
                tried.enter_context(closing(backend))
                lobby.opened(visit, seat)
                place.push_async_exit(tried.pop_all())
                return seat, backend, answer
        raise gateway_fault(failure)

    def _resuming(
        self, connection: LiveConnection, wire: Wire, asked: bytes, place: AsyncExitStack
    ) -> Resuming:
        return Resuming(
            connection,
            wire,
            asked,
            place,
            self.lobby,
            self.connections,
            self.limits,
            self.dialer,
        )

    def _asked(
        self,
        visit: Visit,
        head: RequestHead,
        wire: Wire,
        peer: Peer,
        connection_id: str,
        identity: Identity | None,
    ) -> bytes:
        """The upgrade that the instance is asked for."""
        fields = backend_fields(
            head,
            peer=peer.address,
            trusted=self.trusted_with(peer),
            secure=wire.secure or peer.secure,
            connection_id=connection_id,
            identity=identity.name if identity else None,
        )
        return upgrade_request(visit.request.address[1], fields)

    def client_ip(self, head: RequestHead, peer: Peer) -> str:
        """The address that limits and rules see."""
        return client_address(peer.address, head, self.trusted_with(peer))

    def trusted_with(self, peer: Peer) -> Networks:
        """The proxies that are believed, where this is the peer."""
        return () if peer.anonymous else self.trusted


def note(span: ConnectionSpan, connection: LiveConnection) -> None:
    """Says of a connection that is over where it was, and how it ended."""
    backend, ending = connection.backend, connection.ending
    span.went_to(backend.service_name, backend.instance_id, ending.by, ending.code)


def _connection(
    connection_id: str, visit: Visit, seat: Seat, client: Wire, backend: Wire, handshake_s: float
) -> LiveConnection:
    limit, now = seat.backend.max_message_bytes, trio.current_time()
    tunnel = Tunnel(client, backend, max_message_bytes=limit, now=now)
    return LiveConnection(
        connection_id,
        request=visit.request,
        backend=seat.backend,
        rule=seat.pool.rule,
        tunnel=tunnel,
        handshake_s=handshake_s,
    )


async def _start_tls(wire: Wire, certificate: Certificate) -> None:
    try:
        await wire.start_tls(certificate.context())
    except OSError as error:
        raise ClientGone(f"no TLS: {error}") from None
