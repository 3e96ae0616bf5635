"""The gateway: one address, and behind it a suitable instance for every client."""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections.abc import Iterable, Sequence
from contextlib import closing
from copy import deepcopy
from functools import partial

import trio

from ..core.request import ClientRequest
from ..core.routing import Router, RoutingDecision, RoutingTable
from ..core.strategies import choose
from ..errors import ServiceNotFound
from ..models import Connection
from .forwarded import backend_fields, client_address, networks
from .frames import close_frame
from .handshake import ClientGone, read_head, refuse, switch_protocols
from .head import RequestHead
from .limits import GatewayLimits
from .listener import accept_forever
from .lobby import Lobby
from .refusal import Refusal
from .session import Pacer, run_session
from .sessions import Session, SessionObserver, Sessions
from .tunnel import Ending, Relay, Tunnel
from .upstream import BackendRefused, DialFailed, ask, dial, gateway_fault, upgrade_request
from .wire import Wire

logger = logging.getLogger("agentmgr.gateway")


class Gateway:
    """Routes WebSocket clients to instances, as a table says that it is handed.

    It knows neither a supervisor nor a store. `observer` is told of each session. `trusted_proxies`
    (addresses or networks) may say who the client is; `hints` lets clients ask for a service or tag in the
    query.
    """

    def __init__(
        self,
        table: RoutingTable | None = None,
        *,
        limits: GatewayLimits | None = None,
        observer: SessionObserver | None = None,
        trusted_proxies: Iterable[str] = (),
        hints: bool = True,
    ) -> None:
        self._limits = limits or GatewayLimits()
        self._hints = hints
        self._trusted = networks(trusted_proxies)
        self._lobby = Lobby(Router(table or RoutingTable(), hints=hints), self._limits)
        self._sessions = Sessions(observer)
        self._pacer = Pacer(self._limits)

    # The control side.

    def update(self, table: RoutingTable) -> None:
        """From now on new clients are routed by this table. Sessions that live are not touched."""
        self._lobby.update(Router(table, hints=self._hints, rotations=self._lobby.router.rotations))

    def route(self, request: ClientRequest) -> RoutingDecision:
        """Who would get this client now, and why; nothing is changed by asking."""
        router = self._lobby.router
        try:
            pool = router.pool(request)
        except ServiceNotFound as error:
            return RoutingDecision(None, None, (), None, None, error.code, error.message)
        free = [b for b in pool.routable if self._lobby.has_room(b.instance_id)]
        ids = tuple(b.instance_id for b in pool.backends)
        if not free:
            code = "at_capacity" if pool.routable else "no_service_available"
            reason = f"{pool.reason}, and nobody can take the client now"
            return RoutingDecision(pool.rule, pool.strategy, ids, None, None, code, reason)
        chosen = choose(
            pool.strategy,
            free,
            live=self._lobby.live,
            rotation=deepcopy(pool.rotation),
            rand=random.random,
            key=pool.key_of(request),
        )
        return RoutingDecision(
            pool.rule, pool.strategy, ids, chosen.instance_id, chosen.service_name, None, pool.reason
        )

    def connections(self) -> tuple[Connection, ...]:
        now = trio.current_time()
        return tuple(session.connection(now) for session in self._sessions)

    def active_sessions(self, instance_id: str) -> int:
        """Sessions of an instance, those about to open included."""
        return self._lobby.live.get(instance_id, 0)

    def disconnect(self, connection_id: str, *, code: int = 1008, reason: str = "") -> None:
        """Closes a session. Raises `ConnectionNotFound`, and `ValueError` for a code that cannot be sent."""
        close_frame(code, masked=False)
        self._sessions.get(connection_id).tunnel.end(Ending("gateway", code, reason))

    async def drain(self, instance_id: str, *, timeout_s: float) -> None:
        """Ends an instance's sessions when they fall idle, at the latest after `timeout_s` seconds.

        Returns when none is left. That no new ones come is up to the table: the instance must not be
        routable there any more.
        """
        deadline = trio.current_time() + timeout_s
        farewell = Ending("gateway", 1012, "the service is restarting: please come back")
        while sessions := self._sessions.of(instance_id):
            now = trio.current_time()
            due = [
                session
                for session in sessions
                if session.tunnel.ending is None
                and (now >= deadline or session.idle_s(now) >= self._limits.drain_idle_s)
            ]
            for session in due[: self._limits.close_batch]:
                session.tunnel.end(farewell)
            pause = self._limits.close_pause_s * random.uniform(0.5, 1.5)
            with trio.move_on_after(pause if due else min(max(deadline - now, pause), 0.25)):
                await self._sessions.next_end()

    # The data side.

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves clients until cancelled; then ends their sessions with 1001, in batches.

        The listeners are the caller's: they are not closed.
        """
        relay = Relay(stall_timeout_s=self._limits.stall_timeout_s)
        async with trio.open_nursery() as engine:
            # It has to outlive the cancellation: sessions still relay while they wait for their farewell.
            relaying = await engine.start(relay.run)
            try:
                async with trio.open_nursery() as clients:
                    for listener in listeners:
                        clients.start_soon(accept_forever, listener, partial(self._client, relay), clients)
                    task_status.started()
            finally:
                relaying.cancel()

    async def _client(self, relay: Relay, wire: Wire, peer: tuple[str, int]) -> None:
        """One client, from its first byte to its last."""
        try:
            try:
                with trio.fail_after(self._limits.head_timeout_s):
                    head, early = await read_head(wire, self._limits)
            except trio.TooSlowError:
                raise Refusal(408, "request_timeout", "the request's head took too long") from None
            await self._route(relay, wire, peer, head, early)
        except Refusal as refusal:
            await self._refuse(wire, refusal.response())
        except BackendRefused as refusal:
            await self._refuse(wire, refusal.response)
        except ClientGone:
            pass

    async def _refuse(self, wire: Wire, response: bytes) -> None:
        with trio.move_on_after(self._limits.close_timeout_s):
            await refuse(wire, response)

    async def _route(
        self, relay: Relay, wire: Wire, peer: tuple[str, int], head: RequestHead, early: bytes
    ) -> None:
        """Finds an instance that takes the client, and stays with the two until their session ends."""
        client_ip = client_address(peer[0], head, self._trusted)
        request = ClientRequest(head.target, client_ip, peer[1], head.by_name)
        connection_id = f"con_{secrets.token_hex(8)}"
        asked = upgrade_request(
            request.address[1],
            backend_fields(
                head, peer=peer[0], trusted=self._trusted, secure=wire.secure, request_id=connection_id
            ),
        )
        tried: set[str] = set()
        failure = DialFailed("nobody was tried", retry=True)
        with trio.CancelScope() as dialling:
            for _ in range(self._limits.max_tries):
                async with self._lobby.seat(request, tried) as seat:
                    if seat is None:
                        break
                    if not tried:
                        dialling.deadline = trio.current_time() + self._limits.dial_timeout_s
                    tried.add(seat.backend.instance_id)
                    try:
                        backend = await dial(seat.backend, self._limits)
                    except DialFailed as fault:
                        failure = fault
                        continue
                    with closing(backend):
                        try:
                            answer = await ask(backend, asked, head, self._limits)
                        except DialFailed as fault:
                            failure = fault
                            if fault.retry:
                                continue
                            break
                        dialling.deadline = math.inf
                        await switch_protocols(wire, head, answer.head)
                        now = trio.current_time()
                        session = Session(
                            connection_id,
                            client_ip=client_ip,
                            client_port=peer[1],
                            backend=seat.backend,
                            rule=seat.pool.rule,
                            path=request.bare_path,
                            tunnel=Tunnel(
                                wire, backend, max_message_bytes=seat.backend.max_message_bytes, now=now
                            ),
                        )
                        return await run_session(
                            session,
                            self._sessions,
                            relay,
                            self._pacer,
                            self._limits,
                            early=early,
                            late=answer.rest,
                            loss_code=self._lobby.loss_code,
                        )
        raise gateway_fault(failure)


__all__ = ["Gateway"]
