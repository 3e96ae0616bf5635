"""The gate: where the gateways of other nodes reach the instances of this one, which listen on loopback only.

A gateway proves by its certificate of which node it is, and names an instance (`gate_protocol`). If that is
one of this node by this gateway's own routing table, it is dialled as for a client here, and from then on the
bytes are relayed as they come. Tokens, seats and frames are the business of the gateway at the other end.

How the stream to that gateway ends says what happened: in order, when the instance has ended it; cut, when it
was lost, or this gate was.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import trio

from ..core.repeats import Repeats
from ..core.routing import Backend, Router
from ..credentials import Credentials, explain, peer
from ..errors import AgentManagerError, InvalidRequest
from ..websocket.head import is_key
from ..websocket.sockets import Wire
from . import gate_protocol
from .dialer import Dialer, DialFailed
from .gate_protocol import Failed, Open, Opened
from .limits import GatewayLimits
from .lobby import Lobby
from .tunnel import Ending, Relay, Tunnel

logger = logging.getLogger("agentmgr.gateway")

_NEWS_S = 0.5  # how long this gateway's routing table may lag behind that of the gateway which asks
_FINISH_S = 10.0  # for a gateway to take what an instance said last

_CUT = Ending("gateway", None, "its node is not of the cluster any more, or its gateway was given up")


class _Stranger(Exception):
    """No gateway of this cluster."""


class GateIntake:
    """Everything that a gateway of another node passes on its way to an instance of this one."""

    def __init__(
        self, limits: GatewayLimits, lobby: Lobby, dialer: Dialer, credentials: Credentials, relay: Relay
    ) -> None:
        self._limits = limits
        self._lobby = lobby
        self._dialer = dialer
        self._credentials = credentials
        self._relay = relay
        self._tunnels: dict[str, set[Tunnel]] = {}  # by the node id of the gateway at the other end
        self._news = trio.Event()
        self._refusals = Repeats()

    def update(self) -> None:
        """The gateway has another table: cuts off the gateways of nodes that are in it no more."""
        for node_id, tunnels in self._tunnels.items():
            if not _is_member(node_id, self._router):
                for tunnel in tunnels:
                    tunnel.end(_CUT)  # its own task takes it out of here
        self._news.set()
        self._news = trio.Event()

    async def serve(self, wire: Wire, address: tuple[str, int]) -> None:
        """Serves one gateway's connection to one instance, until it is over."""
        try:
            with trio.fail_after(self._limits.head_timeout_s):
                node_id = await self._introduced(wire)
                request = await gate_protocol.receive(wire)
            if not isinstance(request, Open):
                raise InvalidRequest("it answers, and was not asked")
            if request.key and not is_key(request.key):  # no proof is made over anything else
                raise InvalidRequest("it names a key that is none of a WebSocket")
        except trio.TooSlowError:
            self._log(address[0], "it did not say in time what it wants")
        except (_Stranger, AgentManagerError, OSError) as error:
            self._log(address[0], explain(error) or str(error))
        else:
            await self._serve(wire, node_id, request)

    def _log(self, host: str, why: str) -> None:
        if self._refusals.is_new((host, why), trio.current_time()):
            logger.info("gate: a connection from %s was refused: %s", host, why)

    async def _introduced(self, wire: Wire) -> str:
        """Of which node the gateway is. Raises `_Stranger`, `InvalidRequest`, `OSError`."""
        context = self._credentials.server_context(gate_protocol.PROTOCOL)
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF  # `Wire.end_sending` of a gateway: it can be answered
        await wire.start_tls(context)
        sock = wire.sock
        assert isinstance(sock, ssl.SSLSocket)
        gate_protocol.check_spoken(sock)
        member = peer(sock)
        if member is None or _has_expired(sock):
            raise _Stranger("its certificate has expired, or is none of a node")
        node_id = member.node_id
        with trio.move_on_after(_NEWS_S):
            while not _is_member(node_id, self._router):
                await self._news.wait()
        if not _is_member(node_id, self._router):
            raise _Stranger(f"node {node_id} is not among the nodes of this cluster that have a gateway")
        return node_id

    @property
    def _router(self) -> Router:
        return self._lobby.router

    async def _serve(self, wire: Wire, node_id: str, request: Open) -> None:
        with ExitStack() as place:
            try:
                backend = await self._found(request.instance_id)
                deadline = trio.current_time() + self._limits.dial_timeout_s
                instance, proof = await self._dialer.reach(
                    backend, self._limits, deadline=deadline, key=request.key
                )
                place.enter_context(closing(instance))
            except DialFailed as fault:
                failed = Failed(fault.reason, fault.timed_out, fault.outdated, fault.blame)
                await self._answer(wire, failed)
                return
            if await self._answer(wire, Opened(proof)):
                await self._relayed(wire, instance, node_id)

    async def _found(self, instance_id: str) -> Backend:
        """Raises `DialFailed`."""
        backend = None
        with trio.move_on_after(_NEWS_S):
            while not self._is_here(backend := self._router.by_id.get(instance_id)):
                await self._news.wait()
        if backend is None:
            raise DialFailed("its node knows of no such instance", retry=True, outdated=True, blame=False)
        if not self._is_here(backend):
            reason = "it is on another node, or does not run"
            raise DialFailed(reason, retry=True, outdated=True, blame=False)
        return backend

    def _is_here(self, backend: Backend | None) -> bool:
        return (
            backend is not None
            and backend.node_id == self._dialer.node_id
            and backend.state.keeps_sessions
            and backend.port > 0
        )

    async def _answer(self, wire: Wire, answer: Opened | Failed) -> bool:
        try:
            with trio.move_on_after(self._limits.handshake_timeout_s) as patience:
                await gate_protocol.send(wire, answer)
                if isinstance(answer, Failed):
                    await wire.finish()
        except OSError:
            return False
        return not patience.cancelled_caught

    async def _relayed(self, wire: Wire, instance: Wire, node_id: str) -> None:
        wire.half_closes = True
        tunnel = Tunnel(wire, instance, now=trio.current_time(), opaque=True)
        in_order = False
        try:
            with self._held(node_id, tunnel), self._relay.carrying(tunnel):
                await self._watch(tunnel)
            in_order = tunnel.from_backend.ended
            if in_order:
                with trio.move_on_after(_FINISH_S), suppress(OSError):
                    await wire.finish()
        finally:
            if not in_order:
                wire.abort()

    async def _watch(self, tunnel: Tunnel) -> None:
        """Returns when the relay has an ending, or the instance does not answer the end of its stream."""
        while tunnel.ending is None:
            deadline = math.inf
            if tunnel.first_close is not None:  # the gateway, which has its own limit, may have gone by then
                deadline = tunnel.closing_since + 2 * self._limits.close_timeout_s
            if trio.current_time() >= deadline:
                return
            tunnel.changed = trio.Event()
            with trio.move_on_at(deadline):
                await tunnel.changed.wait()

    @contextmanager
    def _held(self, node_id: str, tunnel: Tunnel) -> Iterator[None]:
        tunnels = self._tunnels.setdefault(node_id, set())
        tunnels.add(tunnel)
        try:
            if not _is_member(node_id, self._router):  # it was taken out while the instance was dialled
                tunnel.end(_CUT)
            yield
        finally:
            tunnels.discard(tunnel)
            if not tunnels:
                self._tunnels.pop(node_id, None)


def _has_expired(sock: ssl.SSLSocket) -> bool:
    """Where a session is resumed, OpenSSL does not look at the certificate again."""
    shown = sock.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(shown["notAfter"])) < time.time()


def _is_member(node_id: str, router: Router) -> bool:
    return not node_id or node_id in router.gates  # the manager's own needs no gate for its dials
