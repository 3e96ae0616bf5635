"""The workers that serve the gateway: the orders they get, their reports, their connections and seats.

Every peer on the worker socket is one: only this user can connect to it; and so is each that a node's
certificate lets in. A worker that lives and does not answer keeps its connections and its seats here; they go
when its process is gone, or when its node is lost and its lease over (`node_workers`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import trio
from attrs import evolve

from ..core.admission import Seats
from ..core.affinity import Affinity
from ..core.routing import Gate, RoutingTable
from ..core.shared_seats import Ask, Gave, Grant, Ledger, Took, Withdraw
from ..errors import ConnectionNotFound, InvalidRequest, WrongState, leaves
from ..link import HEARTBEAT_S, SILENCE_S, Link
from ..process.peer import peer_pid
from ..proxy import ConnectionObserver
from ..settings import Settings
from ..worker import protocol
from ..worker.protocol import Order, Report
from ..worker.spec import gateway
from .gateway_access import GatewayAccess
from .latest_table import LatestTable
from .node_workers import NodeWorker, NodeWorkers
from .worker_handle import RemoteConnection, WorkerHandle

logger = logging.getLogger(__name__)

_SEATS_S = 0.1  #: how old a worker's figures of the others' seats may be, where there are few workers
_SEATS_PER_WORKER_S = 0.01  #: so that 100 workers are told 100 times a second, and not 1,000
_MANY_SEATS = 1000  #: of more changes than that a worker hears once in `HEARTBEAT_S`
_APPLIED_S = 2.0  #: a worker that has not taken a table by then is not waited for
_DRAIN_MARGIN_S = 15.0  #: beyond the drain's own deadline: its close frames wait for answers
_HELLO_S = 20.0  #: from connecting to the first message; where this process is slow, it is not to blame
_END_S = 30.0  #: from `End` to the end of a worker's process


class WorkerManager:
    """All the workers of one manager. `gateway` is that of its own process: they share the seats."""

    def __init__(
        self,
        settings: Settings,
        *,
        observer: ConnectionObserver,
        access: GatewayAccess,
        wake: Callable[[str], None],
        vacated: Callable[[str], None],
        clients_wait: Callable[[], None],
        node_workers: NodeWorkers | None = None,
        credentials: Path | None = None,
        gates_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` is called with the id of a service that is asleep when a client waits for it, `vacated` with
        that of an instance when its last connection has ended, `clients_wait` when a client here waits for a
        seat, or a worker asks for one. `node_workers` and `credentials` in a cluster; `gates_changed` is
        called when `gates` has changed.
        """
        self._wake = wake
        self._seats = Seats(
            vacated=vacated, asked=clients_wait, changed=lambda name: self._ledger.changed(name)
        )
        self._ledger = Ledger(self._seats)
        self._ledger.pause()  # until `resume`
        self._affinity = Affinity(
            on_news=lambda key, holder: self._send_all(protocol.Remembered({key: holder}))
        )
        self.gateway = gateway(
            settings,
            credentials=credentials,
            observer=observer,
            authenticator=access,
            seats=self._seats,
            affinity=self._affinity,
            seat_freed=lambda name: self._grant(self._ledger.serve(name)),
            wake=wake,
        )
        self._observer = observer
        self._access = access
        self._clients_wait = clients_wait
        self._node_workers = node_workers
        self._gates_changed = gates_changed
        self._own_gate: Gate | None = None  # of this process
        self.gates: dict[str, Gate] = {}  #: of the nodes, by id; "" is this machine's
        self.kept: set[str] = set()  #: ids of workers that this manager has started or taken over
        self._workers: dict[str, WorkerHandle] = {}
        self._active = Counter[str]()  # connections of workers, by service id
        self._drains: dict[str, tuple[float, protocol.Drain]] = {}  # by instance: the deadline, and the order
        self._table = LatestTable(access)
        self._news = trio.Event()

    # For the manager

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(tuple(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> WorkerHandle | None:
        return self._workers.get(worker_id)

    def left_at(self, host: str) -> list[WorkerHandle]:
        """Workers of a former manager at this host that this one has not adopted yet."""
        return [
            worker
            for worker in self
            if not (worker.hello.guest or worker.node_id)
            and worker.hello.host == host
            and worker.hello.worker_id not in self.kept
        ]

    def listeners(self) -> list[dict[str, str | int]]:
        """Where workers serve, and how many, for `get_info`."""
        serving = [worker.hello for worker in self if worker.hello.port]  # others have a gate only
        counts = Counter((hello.host, hello.port, hello.tls) for hello in serving)
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
        self.gateway.lobby.serve_waiting()

    async def await_nodes(self) -> None:
        """Returns when those that a former manager knew on nodes have declared their seats, or are gone."""
        if self._node_workers is not None:
            async with trio.open_nursery() as nursery:
                for left in self._node_workers.left():
                    nursery.start_soon(self._await, left, self._node_workers)

    async def _await(self, left: NodeWorker, node_workers: NodeWorkers) -> None:
        def declared() -> bool:
            return (worker := self.get(left.worker_id)) is not None and worker.declared

        async with trio.open_nursery() as nursery:

            async def until_declared() -> None:
                await self.until(declared)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_declared)
            await node_workers.unheard_of(left)
            if self.get(left.worker_id) is None:
                node_workers.forget(left)
            nursery.cancel_scope.cancel()

    def publish(self, table: RoutingTable) -> None:
        self._table.put(table)
        for worker in self:
            self._send_table(worker)
        self._grant(self._ledger.serve_all())  # limits may have been raised

    async def applied(self) -> bool:
        """Returns when all linked workers route by the latest table, at most `_APPLIED_S` later.

        True: so do all that live.
        """
        version = self._table.version
        with trio.move_on_after(_APPLIED_S) as patience:
            await self.until(
                lambda: all(worker.applied >= version for worker in self if worker.link is not None)
            )
        if patience.cancelled_caught:
            logger.warning(
                "a gateway worker did not apply the new routing table within %g s; not waiting for it",
                _APPLIED_S,
            )
        return all(
            worker.link is not None
            and worker.applied >= version
            and worker.hello.version == protocol.VERSION  # of another one it has not got the table
            for worker in self
        )

    def live(self) -> Iterator[RemoteConnection]:
        """The connections of all workers."""
        return chain.from_iterable(worker.connections.values() for worker in self)

    def active(self, service_id: str) -> int:
        """How many connections the service has, here and in the workers."""
        return self._active[service_id] + self.gateway.live_connections.of_service(service_id)

    def waiting(self, instance_ids: Collection[str]) -> int:
        """How many clients wait for a seat at one of these instances, here and in the workers."""
        return self._ledger.asking(instance_ids) + self.gateway.lobby.waiting(instance_ids)

    def disconnect(self, connection_id: str, *, code: int, reason: str) -> None:
        """Raises `ConnectionNotFound`, and `WrongState` where its worker does not answer."""
        for worker in self:
            if connection_id in worker.connections:
                if worker.link is None:
                    raise WrongState("the gateway worker that has this connection does not answer; try again")
                worker.link.put(protocol.Disconnect(connection_id, code, reason))
                return
        raise ConnectionNotFound(f"there is no connection {connection_id!r}")

    async def drain(
        self, instance_id: str, *, timeout_s: float, for_good: bool, idle_s: float | None
    ) -> None:
        """Returns when no worker has a seat at the instance, or could have given it back in time.

        `idle_s`: the silence that makes a connection idle; None: the instance ends them itself.
        """

        def is_left() -> bool:
            # By seats: a connection that waits for another instance to go on with it has none.
            return any(instance_id in self._ledger.held(worker.hello.worker_id) for worker in self)

        order = protocol.Drain(instance_id, timeout_s, for_good, idle_s)
        self._send_all(order)
        self._drains[instance_id] = trio.current_time() + timeout_s, order
        try:
            with trio.move_on_after(timeout_s + _DRAIN_MARGIN_S):
                await self.until(lambda: not is_left())
        finally:
            del self._drains[instance_id]

    def cut(self, instance_id: str, *, for_good: bool) -> None:
        """Makes the workers end an instance's connections now."""
        self._send_all(protocol.Drain(instance_id, 0.0, for_good))

    def end(self, worker: WorkerHandle) -> None:
        """Asks a worker to close its connections and exit."""
        if worker.link is not None:
            worker.link.put(protocol.End())

    async def end_all(self) -> None:
        """Returns when they have ended, or did not in time."""
        linked = [worker for worker in self if worker.link is not None]
        for worker in linked:
            self.end(worker)
        with trio.move_on_after(_END_S):
            for worker in linked:
                await (worker.unlinked if worker.node_id else worker.gone).wait()

    # For the workers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches the workers, and reports the seats to them, until cancelled."""
        async with trio.open_nursery() as self._watching:
            self._watching.start_soon(self.keep_reporting_seats)
            task_status.started()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serves the workers of this machine that connect, until cancelled. `run` runs."""

        async def serve(stream: trio.SocketStream) -> None:
            await self._guarded(stream, lambda: peer_pid(stream.socket), "")

        await trio.serve_listeners(serve, [listener])

    async def serve_stream(self, stream: trio.abc.Stream, node_id: str) -> None:
        """Serves the worker of a node, whose certificate was checked, until its link ends. `run` runs."""
        await self._guarded(stream, lambda: None, node_id)

    async def _guarded(self, stream: trio.abc.Stream, pid: Callable[[], int | None], node_id: str) -> None:
        try:
            await self._serve(stream, pid(), node_id)
        except* (trio.BrokenResourceError, trio.TooSlowError):
            pass  # it has gone, or says nothing
        except* (InvalidRequest, ValueError) as group:
            logger.error(
                "disconnecting a gateway worker: it sent an invalid message: %s", next(leaves(group))
            )
        except* Exception:  # the boundary: one worker's trouble is not another's
            logger.exception("internal error in the manager while it served a gateway worker")

    async def _serve(self, stream: trio.abc.Stream, pid: int | None, node_id: str) -> None:
        if node_id:
            link = Link[Order, Report](
                stream, protocol.encode, protocol.decode_report, heartbeat_s=HEARTBEAT_S, silence_s=SILENCE_S
            )
        else:
            link = Link(stream, protocol.encode, protocol.decode_report)
        async with trio.open_nursery() as talk:
            with trio.fail_after(_HELLO_S):
                hello = await link.receive()
            if isinstance(hello, protocol.Hello):
                await self._converse(link, hello, hello.pid if pid is None else pid, node_id, talk)
            talk.cancel_scope.cancel()

    async def _converse(
        self, link: Link[Order, Report], hello: protocol.Hello, pid: int, node_id: str, talk: trio.Nursery
    ) -> None:
        worker = await self._arrived(hello, pid, node_id)
        worker.link, worker.declared, worker.sent, worker.applied = link, False, 0, 0
        worker.unlinked = trio.Event()
        if hello.version != protocol.VERSION:  # left by another release: it would misread its orders
            logger.info("ending gateway worker %s: it is of another version", pid)
            link.put(protocol.End())
            worker.sent = worker.applied = sys.maxsize  # it gets no table, and is not waited for
        self._send_table(worker)
        link.put(*protocol.remembered(self._affinity.known))
        for deadline, order in self._drains.values():  # it may have missed the order
            link.put(evolve(order, timeout_s=max(0.0, deadline - trio.current_time())))
        claimed = set(worker.connections)  # of which it may have nothing to say any more
        talk.start_soon(link.run)
        try:
            while (report := await link.receive()) is not None:
                self._hear(worker, report, claimed, talk)
        finally:
            worker.link, worker.unlinked_at = None, trio.current_time()
            self._ledger.detach(hello.worker_id)
            worker.unlinked.set()
            self._changed()

    async def _arrived(self, hello: protocol.Hello, pid: int, node_id: str) -> WorkerHandle:
        worker = self._workers.get(hello.worker_id)
        if worker is not None and worker.given_up:  # it comes back just as its seats are freed
            await worker.gone.wait()
            worker = None
        if worker is None:
            worker = WorkerHandle(hello, pid, node_id)
            if self._node_workers is not None and node_id:
                self._node_workers.keep(worker.on_node)
            self._workers[hello.worker_id] = worker
            await self._watching.start(self._watch, worker)
            logger.debug("gateway worker %s serves %s:%d", pid, hello.host, hello.port)
        elif worker.node_id != node_id:
            raise InvalidRequest("it names a worker of another machine")
        elif worker.link is not None:  # it has given up the former one, and we have not seen that yet
            await worker.unlinked.wait()
        worker.hello = hello
        return worker

    async def _watch(self, worker: WorkerHandle, *, task_status: trio.TaskStatus[None]) -> None:
        """Forgets the worker when its process has exited and all that it reported was read, or when it is
        given up.
        """
        if self._node_workers is not None and worker.node_id:
            task_status.started()
            has_ended = False
            while not has_ended:
                has_ended = await self._node_workers.gone(worker.on_node, worker.silent_since)
                if worker.link is None:  # else it has come back just now
                    break
            worker.given_up = not has_ended
        else:
            await self._exited(worker.pid, task_status)
        if worker.given_up:
            await self._fence()
        if worker.link is not None:
            await worker.unlinked.wait()
        del self._workers[worker.hello.worker_id]
        for end in worker.ends():
            self._drop(worker, end.connection_id)
            self._observer.connection_closed(end)
        self._grant(self._ledger.forget(worker.hello.worker_id))
        self.gateway.lobby.serve_waiting()
        if self._node_workers is not None and worker.node_id:
            self._node_workers.forget(worker.on_node)
        self._find_gates()
        worker.gone.set()
        self._changed()

    async def _exited(self, pid: int, task_status: trio.TaskStatus[None]) -> None:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            task_status.started()
            return
        try:
            task_status.started()
            await trio.lowlevel.wait_readable(process)
        finally:
            os.close(process)

    def _find_gates(self) -> None:
        """The gate of each node that has a worker: the same one for as long as its worker is there."""
        found = {} if self._own_gate is None else {"": self._own_gate}
        found |= {
            worker.node_id: worker.hello.gate
            for worker in reversed(self._workers.values())
            if worker.hello.gate is not None and worker.declared and not worker.given_up
        }
        if found != self.gates:
            self.gates = found
            self._gates_changed()

    @contextmanager
    def own_gate(self, gate: Gate | None) -> Iterator[None]:
        """Inside the block this process has the gate of its machine, unless a worker has."""
        self._own_gate = gate
        self._find_gates()
        try:
            yield
        finally:
            self._own_gate = None
            self._find_gates()

    async def _fence(self) -> None:
        """Has the gates of the other nodes end what still comes from one that is given up.

        Its connections there may look alive for as long as the cable is cut.
        """
        before, version = self.gates, self._table.version
        self._find_gates()
        if self.gates != before:
            await self.until(lambda: self._table.version > version)
            await self.applied()

    def _hear(self, worker: WorkerHandle, report: Report, claimed: set[str], talk: trio.Nursery) -> None:
        worker_id = worker.hello.worker_id
        match report:
            case Took() | Gave() | Ask() | Withdraw():
                self._grant(self._ledger.report(worker_id, report))
                if isinstance(report, Ask):
                    self._clients_wait()
                if isinstance(report, Gave):
                    if report.instance_id not in self._seats.full:
                        self.gateway.lobby.offer_seat(report.instance_id)
                    self._changed()
            case protocol.Opened(connection):
                claimed.discard(connection.connection_id)
                before = worker.connections.get(connection.connection_id)
                known = RemoteConnection(connection, trio.current_time())
                worker.connections[connection.connection_id] = known
                if before is None:
                    self._active[connection.service_id] += 1
                    self._observer.connection_opened(connection)
                elif connection.resumed > before.opened.resumed:
                    self._observer.connection_resumed(connection)
            case protocol.Closed(end):
                claimed.discard(end.connection_id)
                self._drop(worker, end.connection_id)
                self._observer.connection_closed(end)
            case protocol.Refused(code):
                self._observer.client_refused(code)
            case protocol.Progress():
                if live := worker.connections.get(report.connection_id):
                    live.reported_at, live.progress = trio.current_time(), report
            case protocol.Remembered(holders):
                for key, holder in holders.items():
                    self._affinity.learn(key, holder)
                self._send_all(report, but=worker)
            case protocol.Declared(seats):
                for connection_id in claimed:  # which it reported on a former link
                    self._drop(worker, connection_id)
                claimed.clear()
                worker.declared = True
                self._find_gates()
                self._grant(self._ledger.declare(worker_id, seats))
                self.gateway.lobby.serve_waiting()  # it may have less than was known
                self._changed()
            case protocol.Applied(version):
                worker.applied = version
                self._send_table(worker)
                self._changed()
            case protocol.Renew(number):
                if worker.link is not None:
                    worker.link.put(protocol.Renewed(number))
            case protocol.Wake(service_id):
                self._wake(service_id)
            case protocol.Redeem():
                talk.start_soon(self._redeem, worker, report)
            case protocol.Hello():
                raise InvalidRequest("it sent Hello twice")

    def _drop(self, worker: WorkerHandle, connection_id: str) -> None:
        if (live := worker.connections.pop(connection_id, None)) is not None:
            service_id = live.opened.service_id
            self._active[service_id] -= 1
            if not self._active[service_id]:
                del self._active[service_id]

    async def _redeem(self, worker: WorkerHandle, report: protocol.Redeem) -> None:
        identity = await self._access.ticket(report.ticket)
        if worker.link is not None:
            worker.link.put(protocol.Redeemed(report.number, identity))

    async def keep_reporting_seats(self) -> None:
        """Reports to each worker how many seats the others have, when that changes and as a heartbeat."""
        while True:
            await self.until(lambda: self._workers)
            for worker in self:
                if worker.link is not None:
                    self._report_seats(worker, worker.link)
            pause_s = max(_SEATS_S, len(self._workers) * _SEATS_PER_WORKER_S)
            await trio.sleep(min(pause_s, protocol.HEARTBEAT_S))

    def _report_seats(self, worker: WorkerHandle, link: Link[Order, Report]) -> None:
        worker_id, now = worker.hello.worker_id, trio.current_time()
        unsaid = self._ledger.unsaid(worker_id)
        if unsaid is None:
            order = protocol.SeatChanges(self._ledger.others(worker_id), whole=True)
        elif 0 < unsaid <= _MANY_SEATS or (
            now - worker.reported_at >= protocol.HEARTBEAT_S
            and (unsaid or not worker.node_id)  # a link between machines has heartbeats of its own
        ):
            order = protocol.SeatChanges(self._ledger.changes(worker_id))
        else:
            return
        worker.reported_at = now
        link.put(order)

    def _send_table(self, worker: WorkerHandle) -> None:
        """One at a time: a slow worker next gets the latest table, and none of those in between."""
        version = self._table.version
        if worker.link is None or worker.sent > worker.applied or worker.sent >= version:
            return
        line, worker.table = self._table.after(worker.sent, worker.table)
        worker.sent = version
        worker.link.put_lines(line)

    def _send_all(self, order: Order, *, but: WorkerHandle | None = None) -> None:
        linked = [worker.link for worker in self if worker.link is not None and worker is not but]
        if linked:
            line = protocol.encode(order)
            for link in linked:
                link.put_lines(line)

    def _grant(self, grants: Iterable[tuple[str, Grant]]) -> None:
        for worker_id, grant in grants:
            link = self._workers[worker_id].link
            assert link is not None, "a worker without a link asks for nothing"
            link.put(grant)

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()
