"""The workers that serve the gateway: the orders they get, their reports, their sessions and seats.

Every peer on the worker socket is one: only this user can connect to it. A worker that lives and does not
answer keeps its sessions and its seats here; they go when its process is gone.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import trio
from attrs import asdict, define, evolve, field

from ..core.admission import Seats
from ..core.affinity import Affinity
from ..core.routing import RoutingTable
from ..core.shared_seats import Ask, Gave, Grant, Ledger, Took, Withdraw
from ..errors import ConnectionNotFound, InvalidRequest, WrongState
from ..models import Connection, ConnectionEnd, utc_now
from ..proxy import ConnectionObserver, Gateway
from ..worker import protocol
from ..worker.link import Link
from ..worker.protocol import Order, Report
from .gateway_access import GatewayAccess

logger = logging.getLogger(__name__)

_OTHERS_S = 0.1  #: how old a worker's figures of the others' sessions may be
_APPLIED_S = 2.0  #: a worker that has not taken a table by then is not waited for
_DRAIN_MARGIN_S = 15.0  #: beyond the drain's own deadline: its close frames wait for answers
_HELLO_S = 5.0  #: from connecting to the first message
_END_S = 30.0  #: for workers that were told to end
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@define
class _Live:
    connection: Connection  #: as last reported
    told_at: float  #: when it was reported


@define(eq=False)
class Remote:
    """A worker, from its first message to the end of its process."""

    hello: protocol.Hello
    pid: int
    sessions: dict[str, _Live] = field(factory=dict)
    link: Link[Report] | None = None  #: while it answers
    declared: bool = False  #: on this link
    sent: int = 0  #: the version of the table last sent to it
    applied: int = 0  #: the version by which it routes
    others: Mapping[str, int] | None = None  #: the others' seats, as last sent to it
    told_at: float = 0.0  #: when they were sent
    unlinked: trio.Event = field(factory=trio.Event)  #: this link has ended
    gone: trio.Event = field(factory=trio.Event)  #: its process has exited, and is forgotten


class Hub:
    """All the workers of one manager. `gateway` is its own: that lobby and theirs share the seats."""

    def __init__(
        self,
        gateway: Gateway,
        seats: Seats,
        affinity: Affinity,
        *,
        observer: ConnectionObserver,
        access: GatewayAccess,
    ) -> None:
        self._gateway = gateway
        self._seats = seats
        self._affinity = affinity
        self._observer = observer
        self._access = access
        self._ledger = Ledger(seats)
        self._ledger.pause()  # until `resume`
        self.kept: set[str] = set()  #: ids of workers that this manager has started or taken over
        self._remotes: dict[str, Remote] = {}
        self._drains: dict[str, tuple[float, protocol.Drain]] = {}  # by instance: the deadline, and the order
        self._version = 0
        self._table = RoutingTable()
        self._table_line: bytes | None = None
        self._news = trio.Event()
        gateway.lobby.freed = lambda name: self._grant(self._ledger.serve(name))
        affinity.tell = lambda key, holder: self._tell_all(protocol.Remembered({key: holder}))

    # For the manager

    def __iter__(self) -> Iterator[Remote]:
        return iter(tuple(self._remotes.values()))

    def get(self, worker_id: str) -> Remote | None:
        return self._remotes.get(worker_id)

    def left_at(self, host: str) -> list[Remote]:
        """Workers of a former manager at this host that this one has not adopted yet."""
        return [
            r
            for r in self
            if not r.hello.guest and r.hello.host == host and r.hello.worker_id not in self.kept
        ]

    def listeners(self) -> list[dict[str, str | int]]:
        """Where workers serve, and how many, for `get_info`."""
        counts = Counter((r.hello.host, r.hello.port, r.hello.tls) for r in self)
        return [
            {"kind": "proxy", "host": host, "port": port, "tls": tls, "workers": count}
            for (host, port, tls), count in counts.items()
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns once the condition holds; it is evaluated again after each change here."""
        while not condition():
            await self._news.wait()

    def resume(self) -> None:
        """Starts to grant seats, once the limits and the seats of living workers are known."""
        self._grant(self._ledger.resume())

    def publish(self, table: RoutingTable) -> None:
        self._version += 1
        self._table, self._table_line = table, None
        for remote in self:
            self._send_table(remote)
        self._grant(self._ledger.serve_all())  # limits may have been raised

    async def applied(self) -> None:
        """Returns when all linked workers route by the latest table, at most `_APPLIED_S` later."""
        version = self._version
        with trio.move_on_after(_APPLIED_S) as patience:
            await self.until(lambda: all(r.applied >= version for r in self if r.link is not None))
        if patience.cancelled_caught:
            logger.warning("a worker of the gateway is slow to take the new routes; going on without it")

    def connections(self) -> Iterator[Connection]:
        now = trio.current_time()
        for remote in self:
            for live in remote.sessions.values():
                yield evolve(live.connection, idle_s=live.connection.idle_s + now - live.told_at)

    def disconnect(self, connection_id: str, *, code: int, reason: str) -> None:
        """Raises `ConnectionNotFound`, and `WrongState` where its worker does not answer."""
        for remote in self:
            if connection_id in remote.sessions:
                if remote.link is None:
                    raise WrongState("the worker that has this connection does not answer just now")
                remote.link.put(protocol.Disconnect(connection_id, code, reason))
                return
        raise ConnectionNotFound(f"there is no connection {connection_id!r}")

    async def drain(
        self, instance_id: str, *, timeout_s: float, for_good: bool, idle_s: float | None
    ) -> None:
        """Returns when no worker has a session of the instance, or could have ended it in time.

        `idle_s`: the silence that makes a session idle; None: the instance ends them itself.
        """

        def left() -> Iterable[Remote]:
            for remote in self:
                if any(s.connection.instance_id == instance_id for s in remote.sessions.values()):
                    yield remote

        order = protocol.Drain(instance_id, timeout_s, for_good, idle_s)
        self._tell_all(order)
        self._drains[instance_id] = trio.current_time() + timeout_s, order
        try:
            with trio.move_on_after(timeout_s + _DRAIN_MARGIN_S):
                await self.until(lambda: not any(left()))
        finally:
            del self._drains[instance_id]

    def cut(self, instance_id: str, *, for_good: bool) -> None:
        """Has the workers end an instance's sessions now."""
        self._tell_all(protocol.Drain(instance_id, 0.0, for_good))

    def end(self, remote: Remote) -> None:
        """Asks a worker to close its sessions and exit."""
        if remote.link is not None:
            remote.link.put(protocol.End())

    async def end_all(self) -> None:
        """Returns when they have ended, or did not in time."""
        told = [remote for remote in self if remote.link is not None]
        for remote in told:
            self.end(remote)
        with trio.move_on_after(_END_S):
            for remote in told:
                await remote.gone.wait()

    # For the workers

    async def serve(self, listener: trio.SocketListener) -> None:
        """Talks with those who come, until cancelled."""
        async with trio.open_nursery() as nursery:

            async def guarded(stream: trio.SocketStream) -> None:
                try:
                    await self._serve(stream, nursery)
                except* (trio.BrokenResourceError, trio.TooSlowError):
                    pass  # it has gone, or says nothing
                except* (InvalidRequest, ValueError) as group:
                    logger.error("a worker of the gateway talks nonsense: %s", group.exceptions[0])
                except* Exception:  # the boundary: one worker's trouble is not another's
                    logger.exception("a worker of the gateway met an error of the manager's own")

            await trio.serve_listeners(guarded, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(bytes(credentials))[0]
        link = Link(stream, protocol.decode_report)
        with trio.fail_after(_HELLO_S):
            hello = await link.receive()
        if not isinstance(hello, protocol.Hello):
            return
        remote = await self._arrived(hello, pid, nursery)
        remote.link, remote.declared, remote.sent, remote.applied = link, False, 0, 0
        remote.others, remote.unlinked = None, trio.Event()
        if hello.version != protocol.VERSION:  # left by another release: it would misread its orders
            logger.info("worker %s is of another version: it is ended", pid)
            link.put(protocol.End())
            remote.sent = remote.applied = sys.maxsize  # it gets no table, and is not waited for
        self._send_table(remote)
        link.put(*protocol.remembered(self._affinity.known))
        for deadline, order in self._drains.values():  # it may have missed the order
            link.put(evolve(order, timeout_s=max(0.0, deadline - trio.current_time())))
        claimed = set(remote.sessions)  # of which it may have nothing to say any more
        try:
            async with trio.open_nursery() as talk:
                talk.start_soon(link.run)
                while (report := await link.receive()) is not None:
                    self._hear(remote, report, claimed, talk)
                talk.cancel_scope.cancel()
        finally:
            remote.link = None
            self._ledger.detach(hello.worker_id)
            remote.unlinked.set()
            self._changed()

    async def _arrived(self, hello: protocol.Hello, pid: int, nursery: trio.Nursery) -> Remote:
        remote = self._remotes.get(hello.worker_id)
        if remote is None:
            remote = self._remotes[hello.worker_id] = Remote(hello, pid)
            await nursery.start(self._watch, remote)
            logger.info("worker %s serves the gateway at %s:%d", pid, hello.host, hello.port)
        elif remote.link is not None:  # it has given up the former one, and we have not seen that yet
            await remote.unlinked.wait()
        return remote

    async def _watch(self, remote: Remote, *, task_status: trio.TaskStatus[None]) -> None:
        """Forgets the worker when its process has exited, and all that it reported was read."""
        try:
            process = os.pidfd_open(remote.pid)
        except ProcessLookupError:
            task_status.started()
        else:
            try:
                task_status.started()
                await trio.lowlevel.wait_readable(process)
            finally:
                os.close(process)
        if remote.link is not None:
            await remote.unlinked.wait()
        del self._remotes[remote.hello.worker_id]
        for live in tuple(remote.sessions.values()):
            self._observer.connection_closed(_lost(live.connection))
        remote.sessions.clear()
        self._grant(self._ledger.forget(remote.hello.worker_id))
        self._gateway.lobby.serve_waiting()
        remote.gone.set()
        self._changed()

    def _hear(self, remote: Remote, report: Report, claimed: set[str], talk: trio.Nursery) -> None:
        worker_id = remote.hello.worker_id
        match report:
            case Took() | Gave() | Ask() | Withdraw():
                self._grant(self._ledger.report(worker_id, report))
                if isinstance(report, Gave) and report.instance_id not in self._seats.full:
                    self._gateway.lobby.offer_seat(report.instance_id)
            case protocol.Opened(connection):
                claimed.discard(connection.connection_id)
                new = connection.connection_id not in remote.sessions
                remote.sessions[connection.connection_id] = _Live(connection, trio.current_time())
                if new:
                    self._observer.connection_opened(connection)
            case protocol.Closed(end):
                claimed.discard(end.connection_id)
                remote.sessions.pop(end.connection_id, None)
                self._observer.connection_closed(end)
                self._changed()
            case protocol.Refused(code):
                self._observer.client_refused(code)
            case protocol.Progress():
                if live := remote.sessions.get(report.connection_id):
                    live.told_at = trio.current_time()
                    live.connection = evolve(live.connection, **asdict(report))
            case protocol.Remembered(holders):
                for key, holder in holders.items():
                    self._affinity.learn(key, holder)
                self._tell_all(report, but=remote)
            case protocol.Declared(seats):
                for connection_id in claimed:  # of which it has told a former link
                    remote.sessions.pop(connection_id, None)
                claimed.clear()
                remote.declared = True
                self._grant(self._ledger.declare(worker_id, seats))
                self._gateway.lobby.serve_waiting()  # it may have less than was known
                self._changed()
            case protocol.Applied(version):
                remote.applied = version
                self._send_table(remote)
                self._changed()
            case protocol.Redeem():
                talk.start_soon(self._redeem, remote, report)
            case protocol.Hello():
                raise InvalidRequest("it says hello twice")

    async def _redeem(self, remote: Remote, report: protocol.Redeem) -> None:
        identity = await self._access.ticket(report.ticket)
        if remote.link is not None:
            remote.link.put(protocol.Redeemed(report.number, identity))

    async def keep_telling(self) -> None:
        """Reports to each worker how many seats the others have, when that changes and as a heartbeat."""
        while True:
            await self.until(lambda: self._remotes)
            now = trio.current_time()
            for remote in self:
                if remote.link is not None:
                    others = self._ledger.others(remote.hello.worker_id)
                    if others != remote.others or now - remote.told_at >= protocol.HEARTBEAT_S:
                        remote.others, remote.told_at = others, now
                        remote.link.put(protocol.OtherSeats(others))
            await trio.sleep(_OTHERS_S)

    def _send_table(self, remote: Remote) -> None:
        """One at a time: a slow worker next gets the latest table, and none of those in between."""
        if remote.link is None or remote.sent > remote.applied or remote.sent >= self._version:
            return
        if self._table_line is None:
            tokens = self._access.tokens
            self._table_line = protocol.encode(
                protocol.Table(
                    self._version, self._table, tokens.all(), tokens.policy, frozenset(tokens.left_open)
                )
            )
        remote.sent = self._version
        remote.link.put_lines(self._table_line)

    def _tell_all(self, order: Order, *, but: Remote | None = None) -> None:
        linked = [remote.link for remote in self if remote.link is not None and remote is not but]
        if linked:
            line = protocol.encode(order)
            for link in linked:
                link.put_lines(line)

    def _grant(self, grants: Iterable[tuple[str, Grant]]) -> None:
        for worker_id, grant in grants:
            link = self._remotes[worker_id].link
            assert link is not None, "who does not answer asks for nothing"
            link.put(grant)

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()


def _lost(connection: Connection) -> ConnectionEnd:
    return ConnectionEnd(
        connection_id=connection.connection_id,
        service_id=connection.service_id,
        instance_id=connection.instance_id,
        started_at=connection.started_at,
        ended_at=utc_now(),
        ended_by="gateway",
        code=None,
        reason="the worker that served it has died",
        bytes_from_client=connection.bytes_from_client,
        bytes_to_client=connection.bytes_to_client,
        messages_from_client=connection.messages_from_client,
        messages_to_client=connection.messages_to_client,
    )
