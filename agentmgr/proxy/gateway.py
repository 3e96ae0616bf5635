"""The gateway: one address, and behind it a suitable instance for every client."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from ..core.admission import Seats
from ..core.affinity import Affinity
from ..core.hosts import origins
from ..core.outliers import OutlierPolicy
from ..core.request import ClientRequest
from ..core.routing import BackendState, Router, RoutingDecision, RoutingTable
from ..core.table_change import TableChange
from ..core.verdicts import verdicts
from ..models import Connection
from ..protocol import COME_BACK, GOING_AWAY, POLICY
from ..telemetry import Telemetry
from ..websocket.frames import close_frame
from ..websocket.refusal import Refusal, RefusalCode
from ..websocket.sockets import Dial
from . import guests
from .access import Authenticator, Quotas
from .certificate import Certificate
from .connections import ConnectionObserver, Connections
from .dialer import Dialer
from .forwarded import networks
from .intake import Fronts, Intake
from .lifetime import Pacer
from .limits import GatewayLimits
from .listener import ConnectionLimit, SocketListener, accept_forever
from .lobby import Lobby
from .token_scopes import TokenScopes
from .tunnel import Ending, Relay

if TYPE_CHECKING:
    from ..credentials import Credentials
    from .gate import GateIntake

_RESTARTING = Ending("gateway", COME_BACK, "the service is restarting: please come back", resumes=True)
_STOPPING = Ending("gateway", GOING_AWAY, "the service is being stopped")


class Gateway:
    """Routes WebSocket clients to instances by the routing table that it was last given.

    It knows neither a supervisor nor a store. `observer` is called for each connection. With an
    `authenticator` every client needs a token or ticket. `trusted_proxies` (addresses or networks) may say
    who the client is. `allowed_origins` are the web pages that may connect: those of this machine if None,
    all with `*`. `hints` lets clients ask for a service or tag in the query. `dial` connects to an instance,
    given its host and port; over TCP if None. `seats` and `affinity` are for gateways that share them with
    others (`agentmgr.core.shared_seats`); `seat_freed` is called with the instance whose seat came free,
    if no client here waited for it. `wake` is called with the id of a service that is asleep when a client
    waits for it. `fronts` speak other protocols on its port. `telemetry` traces its connections. In a
    cluster `node_id` is the id of this node, "" for the manager's, and `credentials` prove it to others.
    Raises `ValueError` for a trusted proxy that is no address or network.
    """

    def __init__(
        self,
        table: RoutingTable | None = None,
        *,
        limits: GatewayLimits | None = None,
        observer: ConnectionObserver | None = None,
        authenticator: Authenticator | None = None,
        trusted_proxies: Iterable[str] = (),
        allowed_origins: Iterable[str] | None = None,
        hints: bool = True,
        outliers: OutlierPolicy | None = None,
        dial: Dial | None = None,
        seats: Seats | None = None,
        affinity: Affinity | None = None,
        seat_freed: Callable[[str], None] | None = None,
        wake: Callable[[str], None] | None = None,
        fronts: Fronts | None = None,
        telemetry: Telemetry | None = None,
        node_id: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        self._limits = limits or GatewayLimits()
        self._hints = hints
        self.dialer = Dialer(dial=dial, node_id=node_id, credentials=credentials)
        self._authenticator = authenticator
        self._fronts = fronts
        self._telemetry = telemetry
        self._intakes: list[Intake] = []  # of each `serve` that runs
        self._gates: list[GateIntake] = []
        self._trusted = networks(trusted_proxies)
        self._allowed_origins = origins(allowed_origins)
        router = Router(table or RoutingTable(), hints=hints)
        self.dialer.update(router.table)
        self._lobby = Lobby(
            router,
            self._limits,
            outliers or OutlierPolicy(),
            seats=seats,
            affinity=affinity,
            seat_freed=seat_freed,
            wake=wake,
        )
        self._connections = Connections(observer)
        self._token_scopes = TokenScopes()
        self._quotas = Quotas(self._limits)
        self._requests = Quotas(self._limits)
        self._pacer = Pacer(self._limits)
        self._connection_limit = ConnectionLimit(
            self._limits.max_connections, refused=self._connections.refused
        )

    # The control side.

    def update(self, table: RoutingTable) -> None:
        """From now on new clients are routed by this table. Connections that live are not touched."""
        self.dialer.update(table)
        self._lobby.update(Router(table, hints=self._hints, rotations=self._lobby.router.rotations))
        if self.dialer.credentials is not None:
            self._connections.follow(self._lobby.router, self.dialer.node_id)
            for gate in self._gates:
                gate.update()

    def change(self, change: TableChange) -> None:
        """As `update` with the table that follows the one it has, at the cost of what has changed."""
        self.dialer.proving.end()
        self._lobby.change(change)
        if self.dialer.credentials is not None:
            changed = {*change.gone, *(backend.instance_id for backend in change.backends)}
            self._connections.follow(self._lobby.router, self.dialer.node_id, changed)
            for gate in self._gates:
                gate.update()

    def table_is_old(self) -> None:
        """Until the next `update` no manager keeps the table up to date: each instance must prove itself."""
        self.dialer.proving.begin(self._lobby.router.table)
        self._lobby.table_is_old()

    def route(self, request: ClientRequest) -> RoutingDecision:
        """The instance that this client would get now, and why. Changes nothing."""
        decision = self._decision(request)
        rules = self._lobby.router.table.rules
        return evolve(decision, rules=verdicts(rules, request, decided=decision.rule))

    def _decision(self, request: ClientRequest) -> RoutingDecision:
        try:
            pool, chosen = self._lobby.preview(request)
        except Refusal as refusal:
            return RoutingDecision(None, None, (), None, None, refusal.code, refusal.reason)
        ids = tuple(b.instance_id for b in pool.backends)
        if chosen is None:
            code = RefusalCode.AT_CAPACITY if pool.routable else RefusalCode.NO_SERVICE_AVAILABLE
            reason = f"{pool.reason}; no instance there can take a client now"
            return RoutingDecision(pool.rule, pool.strategy, ids, None, None, code, reason)
        reason = pool.reason
        if chosen.state is BackendState.ASLEEP:
            reason += f"; {chosen.service_name} is asleep, and is started for the client"
        return RoutingDecision(
            pool.rule, pool.strategy, ids, chosen.instance_id, chosen.service_name, None, reason
        )

    def connections(self) -> tuple[Connection, ...]:
        """The connections that live now."""
        now = trio.current_time()
        return tuple(connection.describe(now) for connection in self._connections)

    @property
    def max_connections(self) -> int:
        """How many there may be at once, handshakes included: as descriptors and limits allow."""
        return self._connection_limit.limit

    @property
    def live_connections(self) -> Connections:
        return self._connections

    @property
    def lobby(self) -> Lobby:
        """Where its clients get their seats."""
        return self._lobby

    def active_connections(self, instance_id: str) -> int:
        """Connections of an instance, those about to open included."""
        return self._lobby.live.get(instance_id, 0)

    def disconnect(self, connection_id: str, *, code: int = POLICY, reason: str = "") -> None:
        """Closes a connection. Raises `ConnectionNotFound`; `ValueError` for a code that cannot be sent."""
        close_frame(code, masked=False)
        self._connections.get(connection_id).tunnel.end(Ending("gateway", code, reason))

    async def drain(
        self,
        instance_id: str,
        *,
        timeout_s: float,
        for_good: bool = False,
        idle_s: float | None = None,
        by_itself: bool = False,
    ) -> None:
        """Ends an instance's connections when they fall idle, at the latest after `timeout_s` seconds.

        Idle: no data frame for `idle_s` seconds (None: `GatewayLimits.drain_idle_s`). With `by_itself` the
        instance knows when a connection is idle, and ends it; silence says nothing then.

        Clients get 1012 (come back), or with `for_good` 1001 (going away).
        Returns when none is left, and none is about to open. That no new ones come is up to the table: the
        instance must not be routable there any more.
        """
        deadline = trio.current_time() + timeout_s
        farewell = _STOPPING if for_good else _RESTARTING
        idle_s = math.inf if by_itself else self._limits.drain_idle_s if idle_s is None else idle_s
        while self.active_connections(instance_id):
            now, connections = trio.current_time(), self._connections.of(instance_id)
            if now >= deadline and not connections:
                break
            due = [
                connection
                for connection in connections
                if connection.tunnel.ending is None and (now >= deadline or connection.idle_s(now) >= idle_s)
            ]
            for connection in due[: self._limits.close_batch]:
                connection.tunnel.end(farewell)
            pause = self._limits.close_pause_s * random.uniform(0.5, 1.5)
            if len(due) > self._limits.close_batch:
                await trio.sleep(pause)  # also when the batch is gone at once: they are about to come back
                continue
            longest = 0.25 if connections else pause  # those about to open are heard of in no other way
            with trio.move_on_after(pause if due else min(max(deadline - now, pause), longest)):
                await self._connections.next_end()

    def cut(self, instance_id: str, *, for_good: bool = False) -> None:
        """Ends an instance's connections at once, with the same words."""
        for connection in self._connections.of(instance_id):
            connection.tunnel.end(_STOPPING if for_good else _RESTARTING)

    def keep_tokens(self, token_ids: Collection[str]) -> None:
        """Ends what other tokens than these (`Identity.token_id`) opened: connections with 1008, those that
        wait with 401. A connection that was opened without a token goes on.
        """
        self._token_scopes.keep(token_ids)

    # The data side.

    async def serve(
        self,
        listeners: Sequence[SocketListener],
        *,
        certificate: Certificate | None = None,
        proxy_protocol: bool = False,
        gate_listeners: Sequence[SocketListener] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves clients until cancelled; then ends their connections with 1001, in batches.

        With a certificate the listeners speak TLS only. With `proxy_protocol` they take connections of
        trusted proxies only, which begin with that. At `gate_listeners` the gateways of other nodes reach the
        instances of this one. They are the caller's, and not closed here.
        """
        relay = Relay(stall_timeout_s=self._limits.stall_timeout_s, busy_wait_s=self._limits.busy_wait_s)
        async with trio.open_nursery() as engine:
            # It has to outlive the cancellation: connections still relay while they wait for their farewell.
            # Not by `start`: cancelled, it waits for ever for a task that is shielded from that.
            engine.start_soon(relay.run)
            try:
                async with trio.open_nursery() as clients:
                    intake = Intake(
                        self._limits,
                        self._lobby,
                        self._connections,
                        self._token_scopes,
                        self._quotas,
                        self._requests,
                        self._pacer,
                        relay,
                        self._trusted,
                        self._allowed_origins,
                        self._authenticator,
                        certificate,
                        proxy_protocol,
                        self.dialer,
                        self._fronts,
                        self._telemetry,
                        clients,
                        self._connection_limit,
                    )
                    self._intakes.append(intake)
                    for listener in listeners:
                        clients.start_soon(
                            accept_forever, listener, intake.serve, clients, self._connection_limit
                        )
                    for listener in gate_listeners:
                        accept = partial(accept_forever, refusal=b"")  # it speaks TLS only
                        gate = self._gate(relay)
                        clients.start_soon(accept, listener, gate.serve, clients, self._connection_limit)
                    task_status.started()
                    await trio.sleep_forever()  # also where there is no listener
            finally:
                self._intakes.remove(intake)
                self._gates.clear()
                relay.ended.cancel()
                if self._telemetry is not None:
                    await self._telemetry.close()

    def _gate(self, relay: Relay) -> GateIntake:
        from .gate import GateIntake

        if self.dialer.credentials is None:
            raise ValueError("a gate needs the credentials of its node, and this gateway was given none")
        gate = GateIntake(self._limits, self._lobby, self.dialer, self.dialer.credentials, relay)
        self._gates.append(gate)
        return gate

    async def relay(self, request: object, *, target: str | None = None) -> None:
        """Serves a client of a WebSocket server of the application's own, until its connection ends.

        `request` is a `WebSocketRequest` of trio-websocket, or Quart's `websocket`; neither is accepted yet.
        The client is let in or refused, and counts, as one that comes to the gateway itself; `target` is what
        it then would have asked for, as `/services/NAME`, where that is not what it has asked for. `serve`
        must run, if only without listeners: `await nursery.start(gateway.serve, [])`. Each message is taken
        whole, and costs three times the CPU of one through the gateway's own port (of 20 KB: five times).
        """
        if not self._intakes:
            raise RuntimeError("the gateway does not serve: await nursery.start(gateway.serve, []) before")
        await guests.relay(self._intakes[-1], guests.guest_of(request), target)
