"""Reaches instances of other nodes, through the gates there."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import ExitStack, closing

import trio

from ..core.hosts import authority
from ..core.routing import Backend, Gate
from ..credentials import Credentials, explain, peer
from ..errors import AgentManagerError, InvalidRequest
from ..websocket.sockets import Wire
from . import gate_protocol
from .dialer import DialFailed, open_connection
from .limits import GatewayLimits

_NEWS_S = 2.0  # for a gate that has gone to be followed by the next: a gateway is restarted in less
_SPARED_S = 5.0  # after one did not accept in time: else each client of a node that is cut off waits for it


class GateDialer:
    """Those of one gateway, or of the manager. `update` names the gates there are."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._gates: Mapping[str, Gate] = {}
        self._sessions: dict[str, tuple[ssl.SSLContext, ssl.SSLSession]] = {}  # of TLS, by node id
        self._spared_until: dict[str, float] = {}  # gates that did not accept, by node id
        self._news = trio.Event()

    def update(self, gates: Mapping[str, Gate]) -> None:
        if gates == self._gates:
            return
        for node_id in self._gates.keys() | gates.keys():
            if gates.get(node_id) != self._gates.get(node_id):
                self._sessions.pop(node_id, None)
                self._spared_until.pop(node_id, None)
        self._gates = gates
        self._news.set()
        self._news = trio.Event()

    async def reach(
        self, backend: Backend, limits: GatewayLimits, *, deadline: float, key: str
    ) -> tuple[Wire, str]:
        """As `Dialer.reach`."""
        wire = await self._to_gate(backend.node_id, limits, deadline)
        with ExitStack() as until_open:
            until_open.enter_context(closing(wire))
            try:
                with trio.fail_at(min(deadline, trio.current_time() + limits.handshake_timeout_s)):
                    opened = await self._opened(wire, backend, key)
            except trio.TooSlowError:
                reason = "the gateway of its node did not answer in time"
                raise DialFailed(reason, retry=True, timed_out=True) from None
            except (AgentManagerError, OSError) as fault:
                self._sessions.pop(backend.node_id, None)
                reason = explain(fault) or getattr(fault, "strerror", None) or str(fault)
                raise DialFailed(f"the gateway of its node: {reason}", retry=True) from None
            until_open.pop_all()
            return wire, opened.proof

    async def _to_gate(self, node_id: str, limits: GatewayLimits, deadline: float) -> Wire:
        """If there is none, or it has just gone, the next one is waited for a moment. Raises `DialFailed`."""
        until = min(deadline, trio.current_time() + _NEWS_S)
        while True:
            news, gate = self._news, self._gates.get(node_id)
            failure = DialFailed("no gateway of its node is linked to the manager", retry=True)
            if gate is not None:
                try:
                    return await self._connected(node_id, gate, limits, deadline)
                except DialFailed as fault:
                    if fault.timed_out or not fault.blame:
                        raise
                    failure = fault
            with trio.move_on_at(until) as patience:
                await news.wait()
            if patience.cancelled_caught:
                raise failure

    async def _connected(self, node_id: str, gate: Gate, limits: GatewayLimits, deadline: float) -> Wire:
        who = f"the gateway of its node ({authority(gate.host, gate.port)})"
        if trio.current_time() < self._spared_until.get(node_id, 0.0):
            raise DialFailed(f"{who} did not accept in time a moment ago", retry=True, timed_out=True)
        try:
            return await open_connection(gate.host, gate.port, limits, deadline)
        except DialFailed as fault:
            if fault.timed_out:
                self._spared_until[node_id] = trio.current_time() + _SPARED_S
            raise DialFailed(
                f"{who}: {fault.reason}", retry=True, timed_out=fault.timed_out, blame=fault.blame
            ) from None

    async def _opened(self, wire: Wire, backend: Backend, key: str) -> gate_protocol.Opened:
        """Raises `DialFailed`, `AgentManagerError`, `OSError`."""
        node_id = backend.node_id
        context = self._credentials.client_context(gate_protocol.PROTOCOL)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # how a stream ends says what happened
        known = self._sessions.get(node_id)
        session = known[1] if known is not None and known[0] is context else None
        sock = await wire.start_tls_client(context, session=session)
        gate_protocol.check_spoken(sock)
        member = peer(sock)
        if member is None or member.node_id != node_id:
            raise InvalidRequest("its certificate is another node's; is its address used by another one?")
        await gate_protocol.send(wire, gate_protocol.Open(backend.instance_id, key))
        answer = await gate_protocol.receive(wire)
        if isinstance(answer, gate_protocol.Failed):
            raise DialFailed(
                answer.reason,
                retry=True,
                timed_out=answer.timed_out,
                outdated=answer.outdated,
                blame=answer.blame,
            )
        if not isinstance(answer, gate_protocol.Opened):
            raise InvalidRequest("it asks, instead of answering")
        # A ticket has come along, by which the next handshake costs less.
        if not sock.session_reused and (made := sock.session) is not None and made.has_ticket:
            self._sessions[node_id] = context, made
        wire.half_closes = wire.at_gate = True
        return answer
