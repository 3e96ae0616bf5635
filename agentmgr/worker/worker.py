"""One worker: a gateway, and its side of the talk with whichever manager runs.

Without a manager it goes on: with the table, the tokens and the seats that it had last. What happens then is
reported to the next manager. On a node it holds its seats elsewhere by a lease (`core.leases`).
"""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count

import trio

from ..core.affinity import Affinity
from ..core.leases import Lease
from ..core.routing import Gate
from ..core.secrets import token_of
from ..core.shared_seats import Grant, SharedSeats
from ..errors import ConnectionNotFound, InvalidRequest, leaves
from ..link import HEARTBEAT_S, Link, silence_patience
from ..models import Connection, ConnectionEnd, Token, TokenPolicy, utc_now
from ..protocol import COME_BACK
from ..proxy import Certificate, GatewayLimits, Identity
from ..proxy.tunnel import Ending
from . import protocol
from .dial import Dialer
from .kept import KeptTable
from .protocol import Order, Report
from .spec import WorkerSpec, gate_of, gateway

logger = logging.getLogger("agentmgr.gateway")

_FIRST_RETRY_S, _LAST_RETRY_S = 0.02, 0.5  # between looks for a manager, doubling
_MANAGER_S = 2.0  # for a manager to send the first table, before that of an earlier gateway is used
_PROGRESS_S = 1.0  # between two looks at what connections have done
_PROGRESS_PARTS = 10  # in as many looks each connection has its turn, where there are many
_PART = 100  # connections: so all that 100 workers can have, 100,000, make 10,000 reports a second at most
_SOME = 500  # connections looked at before other tasks run
_TICKET_S = 5.0  # for the manager to say whose ticket it is
_LAST_WORDS_S = 2.0  # for the manager to take the last reports
_RENEW_S = 1.0  # between two questions for the lease; five within a short one
_LOOK_S = 0.25  # for connections that were about to open when the lease ended
_MOST_ENDS = 100_000  # kept for the next manager

_CUT_OFF = Ending("gateway", COME_BACK, "this gateway has lost its manager: please come back")

LIMITS = GatewayLimits(busy_wait_s=0.001)  #: a worker relays, and does little else


class Worker:
    """Serves clients until `end` is called or a manager sends `End`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._link: Link[Report, Order] | None = None  # while a manager listens
        self._talk = trio.CancelScope()  # with that one
        self._patience = silence_patience()  # with a manager on another machine
        self._lease = Lease(spec.lease_s) if spec.node_id else None
        self._renewed = trio.Event()
        self._unheard: deque[ConnectionEnd] = deque(maxlen=_MOST_ENDS)
        self._reported: dict[str, int] = {}  # bytes of each connection at its last report
        self._redeeming: dict[int, trio.MemorySendChannel[Identity | None]] = {}
        self._numbers = count()
        self._access = WorkerAccess(self._redeem)
        self._seats = SharedSeats(self._say)
        self._affinity = Affinity(on_news=lambda key, holder: self._say(protocol.Remembered({key: holder})))
        self.gateway = gateway(
            spec.settings,
            credentials=spec.credentials,
            node_id=spec.node_id,
            limits=LIMITS,
            observer=self,
            authenticator=self._access,
            seats=self._seats,
            affinity=self._affinity,
            wake=lambda service_id: self._say(protocol.Wake(service_id)),
        )
        self._version = 0  # the manager's number for the table that the gateway has
        self.serving = trio.Event()
        self._port = spec.port if spec.listens else 0
        self._gate: Gate | None = None
        self._has_table = trio.Event()
        self._kept = KeptTable(spec) if spec.node_id else None
        self._ending = trio.Event()

    def end(self) -> None:
        """Makes `serve` return once the connections are closed."""
        self._ending.set()

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        certificate: Certificate | None = None,
        *,
        gate_listeners: Sequence[trio.SocketListener] = (),
    ) -> None:
        """Serves until `end`; then closes its connections with 1001, in batches. Closes the listeners.

        It accepts clients from when a manager has sent the first routing table; on a node where none answers,
        by the table of the gateway before. At `gate_listeners` gateways of other nodes reach the instances of
        its own.
        """
        if listeners:
            self._port = listeners[0].socket.getsockname()[1]
        self._gate = gate_of(self._spec, gate_listeners)
        # Whatever ends the worker, it relays and reports ends until it has no connection left.
        talking = trio.CancelScope(shield=True)

        async def talk() -> None:
            with talking:
                async with trio.open_nursery() as nursery:
                    if self._lease is not None:
                        nursery.start_soon(self._hold_by, self._lease)
                    if self._kept is not None:
                        nursery.start_soon(self._kept.run, self._table)
                    dialer = Dialer(self._spec)
                    while True:
                        async with trio.open_nursery() as following:
                            following.start_soon(self._keep_attached, dialer, nursery)
                            await dialer.moved()
                            following.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            try:
                with ExitStack() as listening:
                    for listener in (*listeners, *gate_listeners):
                        listening.callback(listener.socket.close)
                    async with trio.open_nursery() as serving:
                        serving.start_soon(self._serve_clients, listeners, certificate, gate_listeners)
                        await self._ending.wait()
                        serving.cancel_scope.cancel()
                        listening.close()  # the next clients are for the other workers
            finally:
                if self._link is not None:
                    with trio.move_on_after(_LAST_WORDS_S, shield=True):
                        await self._link.flushed()
                talking.cancel()

    async def _serve_clients(
        self,
        listeners: Sequence[trio.SocketListener],
        certificate: Certificate | None,
        gate_listeners: Sequence[trio.SocketListener],
    ) -> None:
        if self._kept is not None:
            with trio.move_on_after(_MANAGER_S):
                await self._has_table.wait()
            if not self._has_table.is_set() and (table := self._kept.read()) is not None:
                logger.warning("no manager answers; serving by the routing table of the gateway before")
                self._use(table)
                self._has_table.set()
        await self._has_table.wait()
        serve = partial(
            self.gateway.serve,
            listeners,
            certificate=certificate,
            proxy_protocol=self._spec.settings.proxy_protocol,
            gate_listeners=gate_listeners,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            self.serving.set()

    # The gateway's observer

    def connection_opened(self, connection: Connection) -> None:
        self._say(protocol.Opened(connection))

    def connection_resumed(self, connection: Connection) -> None:
        self._say(protocol.Opened(connection))

    def connection_closed(self, end: ConnectionEnd) -> None:
        self._reported.pop(end.connection_id, None)
        if self._link is None:
            self._unheard.append(end)
        else:
            self._say(protocol.Closed(end))

    def client_refused(self, code: str) -> None:
        self._say(protocol.Refused(code))

    # The talk with the manager

    def _say(self, report: Report) -> None:
        if self._link is not None:
            self._link.put(report)

    async def _keep_attached(self, dialer: Dialer, nursery: trio.Nursery) -> None:
        pause, trouble = _FIRST_RETRY_S, ""
        while True:
            try:
                stream = await dialer.dial()
            except OSError as error:  # no manager runs now: try again
                pause = min(pause * 2, _LAST_RETRY_S)
                if self._spec.manager is not None and str(error) != trouble:
                    trouble = str(error)
                    logger.warning("not linked with the manager: %s; trying again", trouble)
            else:
                began = trio.current_time()
                async with stream:
                    await self._converse(stream, nursery)
                trouble, lasted = "", trio.current_time() - began > _LAST_RETRY_S
                pause = _FIRST_RETRY_S if lasted else min(pause * 2, _LAST_RETRY_S)
            await trio.sleep(pause * random.uniform(0.5, 1.5))

    async def _converse(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        """Returns when the manager has gone, or does not answer."""
        if self._lease is not None:
            link = Link[Report, Order](
                stream,
                protocol.encode,
                protocol.decode_order,
                heartbeat_s=HEARTBEAT_S,
                silence_s=self._patience.seconds,
            )
        else:
            link = Link(stream, protocol.encode, protocol.decode_order, silence_s=protocol.SILENCE_S)
        self._attach(link)
        try:
            async with trio.open_nursery() as talk:
                self._talk = talk.cancel_scope
                talk.start_soon(link.run)
                talk.start_soon(self._report_progress)
                if self._lease is not None:
                    talk.start_soon(self._renew, self._lease)
                while (order := await link.receive()) is not None:
                    self._obey(order, nursery)
                talk.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass
        except* InvalidRequest as group:
            logger.error(
                "disconnecting from the manager: it sent an order that this version does not know: %s",
                next(leaves(group)),
            )
        finally:
            self._patience.learn(in_vain=link.silent_soon)
            self._detach(link)

    def _attach(self, link: Link[Report, Order]) -> None:
        """All at once, so that nothing happens between what is declared and the reports that follow."""
        spec = self._spec
        link.put(
            protocol.Hello(
                worker_id=spec.worker_id,
                host=spec.host,
                port=self._port,
                tls=spec.certfile is not None,
                slot=spec.slot,
                options=spec.options,
                guest=spec.guest,
                version=protocol.VERSION,
                pid=os.getpid(),
                gate=self._gate,
            ),
            *map(protocol.Opened, self.gateway.connections()),
            *map(protocol.Closed, self._unheard),
            *protocol.remembered(self._affinity.known),
            protocol.Declared(self._seats.attach()),
        )
        if self._lease is not None:
            link.put(protocol.Renew(self._lease.ask(trio.current_time())))
        self._unheard.clear()
        self._reported.clear()
        self._link = link
        self.gateway.lobby.serve_waiting()  # they ask again, this manager

    def _detach(self, link: Link[Report, Order]) -> None:
        """Once this link is no use any more; nothing where that is known."""
        if self._link is not link:
            return
        self._link = None
        self.gateway.table_is_old()
        self._seats.detach()
        if self._lease is not None:
            self._lease.unlinked()
        for answer in self._redeeming.values():
            answer.close()
        if not self._ending.is_set():
            logger.info("no manager answers; serving on with the last routing table and tokens")

    # The lease

    async def _renew(self, lease: Lease) -> None:
        while True:
            await trio.sleep(min(_RENEW_S, self._spec.lease_s / 5))
            self._say(protocol.Renew(lease.ask(trio.current_time())))

    async def _hold_by(self, lease: Lease) -> None:
        """Whenever it is over, ends the connections at limited instances of other nodes; until cancelled."""
        while True:
            await self._renewed.wait()
            while trio.current_time() < lease.ends_at:  # noqa: ASYNC110  (each renewal moves it on)
                await trio.sleep_until(lease.ends_at)
            self._renewed = trio.Event()
            if self._link is not None:  # it is silent, or does not answer
                self._talk.cancel()
                self._detach(self._link)
            kept = {
                backend.instance_id
                for backend in self.gateway.lobby.router.by_id.values()
                if backend.node_id == self._spec.node_id or not backend.max_sessions
            }
            given_up = self._seats.lapse(kept)
            logger.warning(
                "no manager has answered for %g s: ending the connections at %d instances of other nodes, "
                "those with max_sessions; the manager may give their seats to others",
                self._spec.lease_s,
                len(given_up),
            )
            async with trio.open_nursery() as ending:
                for instance_id in given_up:
                    ending.start_soon(self._vacate, instance_id)
                await self._renewed.wait()
                ending.cancel_scope.cancel()

    async def _vacate(self, instance_id: str) -> None:
        """Returns when no connection to the instance is left, nor about to open."""
        connections = self.gateway.live_connections
        while self._seats.in_use(instance_id):
            for connection in connections.of(instance_id):
                connection.tunnel.end(_CUT_OFF)
            with trio.move_on_after(_LOOK_S):
                await connections.next_end()

    # Orders

    def _obey(self, order: Order, nursery: trio.Nursery) -> None:
        match order:
            case protocol.Table():
                self._use(order)
                self._routes_by(order.version)
            case protocol.Changes() if order.since == self._version:
                self.gateway.change(order.change)
                self._routes_by(order.version)
            case protocol.Changes():
                raise InvalidRequest("changes of a table that this worker does not have")
            case protocol.SeatChanges():
                self._seats.know(order.seats, whole=order.whole)
            case Grant():
                self._seats.granted(order.instance_id)
                self.gateway.lobby.granted(order.ticket, order.instance_id)
                self._seats.settle(order.instance_id)  # its client may have left, or may not have it any more
            case protocol.Remembered():
                for key, instance_id in order.holders.items():
                    self._affinity.learn(key, instance_id)
            case protocol.Drain():
                # Not a part of this talk: it goes on when the manager does not.
                drain = partial(
                    self.gateway.drain,
                    order.instance_id,
                    timeout_s=order.timeout_s,
                    for_good=order.for_good,
                    idle_s=order.idle_s,
                    by_itself=order.idle_s is None,
                )
                nursery.start_soon(drain)
            case protocol.Disconnect():
                with suppress(ConnectionNotFound):  # it has ended meanwhile
                    self.gateway.disconnect(order.connection_id, code=order.code, reason=order.reason)
            case protocol.Redeemed() if order.number in self._redeeming:
                self._redeeming[order.number].send_nowait(order.identity)
            case protocol.Renewed() if self._lease is not None:
                self._lease.answered(order.number)
                if trio.current_time() < self._lease.ends_at:
                    self._renewed.set()
            case protocol.End():
                self.end()

    def _use(self, order: protocol.Table) -> None:
        self._access.tokens, self._access.policy = order.tokens, order.token_policy
        self._access.left_open |= order.left_open  # the next manager does not know of them
        self.gateway.update(order.table)
        self.gateway.keep_tokens({t.token_id for t in order.tokens} | self._access.left_open)

    def _table(self) -> protocol.Table:
        access, table = self._access, self.gateway.lobby.router.table
        return protocol.Table(0, table, access.tokens, access.policy, access.left_open)

    def _routes_by(self, version: int) -> None:
        self._version = version
        if self._kept is not None:
            self._kept.changed()
        self._say(protocol.Applied(version))
        self._has_table.set()

    async def _report_progress(self) -> None:
        for turn in count():
            await trio.sleep(_PROGRESS_S)
            live = self.gateway.live_connections
            for number, connection in enumerate(live):
                if number % _SOME == _SOME - 1:
                    await trio.lowlevel.checkpoint()
                if not has_turn(connection.connection_id, turn, len(live)):
                    continue
                done = connection.tunnel.from_client.bytes + connection.tunnel.from_backend.bytes
                if done != self._reported.get(connection.connection_id, 0) and connection in live:
                    self._reported[connection.connection_id] = done
                    self._say(protocol.Progress.of(connection.describe(trio.current_time())))

    async def _redeem(self, ticket: str) -> Identity | None:
        if self._link is None:
            return None
        number = next(self._numbers)
        answer, answered = trio.open_memory_channel[Identity | None](1)
        self._redeeming[number] = answer
        with answer, answered:
            try:
                self._say(protocol.Redeem(number, ticket))
                with trio.move_on_after(_TICKET_S):
                    return await answered.receive()
            except trio.EndOfChannel:  # the manager has gone
                pass
            finally:
                del self._redeeming[number]
        return None


def has_turn(connection_id: str, turn: int, connections: int) -> bool:
    """Whether this one of so many is looked at now: of few, each at each turn; of many, at each tenth."""
    parts = min(1 + connections // _PART, _PROGRESS_PARTS)
    return (hash(connection_id) - turn) % parts == 0


class WorkerAccess:
    """A worker's `Authenticator`: the tokens that the manager sent last hold until it sends others.

    A ticket is good for one connection, so the manager redeems it; while none answers, no ticket is
    accepted.
    """

    def __init__(self, redeem: Callable[[str], Awaitable[Identity | None]]) -> None:
        self.tokens: tuple[Token, ...] = ()
        self.policy = TokenPolicy()
        self.left_open = frozenset[str]()
        self._redeem = redeem

    @property
    def required(self) -> bool:
        return self.policy.gateway

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return Identity.of(token_of(self.tokens, token), utc_now())

    async def ticket(self, ticket: str) -> Identity | None:
        return await self._redeem(ticket)
