"""Plays nodes of a cluster to a real manager, for `bench_hundred.py`: `fake_nodes.py DIRECTORY`.

Each node is the real `agentmgr.node.Node` over fake processes, joined and linked as any other, with an
address of its own. Its gateway speaks the real protocol of workers: it follows the tables,
asks for seats, takes them and gives them back; only its clients are missing. So for the manager there is no
difference. What several gateways of one process hear alike is decoded once.

Orders come on stdin, as JSON lines `[NAME, ARGUMENTS]`, and each is answered by one on stdout (`Player`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import random
import resource
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve

from agentmgr.core.leases import Lease
from agentmgr.core.restart import Exit
from agentmgr.core.routing import Backend, BackendState, Gate, Router, RoutingTable
from agentmgr.core.shared_seats import Grant, SharedSeats
from agentmgr.credentials import Credentials
from agentmgr.dialing import NODE_PROTOCOL, ManagerAddress, dial, dial_patience
from agentmgr.errors import AgentManagerError
from agentmgr.link import HEARTBEAT_S, Link, silence_patience
from agentmgr.models import Connection, ConnectionEnd, InstanceRecord, Usage, utc_now
from agentmgr.node.daemon import join_cluster, new_config
from agentmgr.node.joining import Secret
from agentmgr.node.node import Node
from agentmgr.node.protocol import AwaitGateway, Done, Facts, KeepGateways, KillGateway
from agentmgr.testing.fake_launcher import Behaviour, FakeChild, FakeLauncher, FakeSlot
from agentmgr.version import __version__
from agentmgr.worker import protocol
from agentmgr.worker.dial import WORKER_PROTOCOL

_TICK_S = 0.05  #: between two looks at what is due
_GATES_FROM = 30_000  #: nobody dials them
_JOIN_AT_ONCE = 5  #: in each process
_REDIAL_S = (0.02, 0.5)  #: as a worker's


class Counting(trio.abc.Stream):
    """Counts what goes over a link, before it is encrypted."""

    def __init__(self, stream: trio.abc.Stream, traffic: Counter[str], kind: str) -> None:
        self._stream, self._traffic, self._kind = stream, traffic, kind

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._traffic[f"to_{self._kind}s"] += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._traffic[f"from_{self._kind}s"] += len(data)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Processes(FakeLauncher):
    """The fake processes of one node; they use what a small agent does."""

    def slot(self, spec: Any, instance_id: str, position: int) -> FakeSlot:
        return _Slot(self, spec, instance_id, position)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return (Usage(utc_now(), random.uniform(0, 3), random.randint(20, 40) * 2**20, 1, 4, 12),)


class _Slot(FakeSlot):
    def _begin(self, record: InstanceRecord, behaviour: Behaviour) -> FakeChild:
        token = record.token if "-" not in record.token else secrets.token_hex(16)  # else two nodes have one
        return super()._begin(evolve(record, token=token), behaviour)


@lru_cache(maxsize=64)
def _decode_table(line: bytes) -> protocol.Order:
    return protocol.decode_order(line)


def _decode(line: bytes) -> protocol.Order:
    shared = line.startswith((b'["Table"', b'["Changes"'))
    return _decode_table(line) if shared else protocol.decode_order(line)


class View:
    """The latest table that a gateway of this process has, ready for use; all of them route by it."""

    def __init__(self) -> None:
        self.router = Router(RoutingTable())
        self.version = 0
        self.applied: dict[int, list[float]] = {}  # by version: when each gateway applied it, monotonic
        self._last: object = None

    def obey(self, order: protocol.Table | protocol.Changes) -> None:
        if order is not self._last and isinstance(order, protocol.Table):
            self.router, self._last, self.version = Router(order.table), order, order.version
            self.applied = {}
        elif isinstance(order, protocol.Changes) and order.since == self.version:
            self.router.change(order.change)
            self._last, self.version = order, order.version
        self.applied.setdefault(order.version, []).append(time.monotonic())

    def of_service(self, name: str) -> list[Backend]:
        members = self.router._services.get(name, {})
        return [backend for backend in members.values() if backend.state is BackendState.ROUTABLE]

    @property
    def routable(self) -> int:
        return sum(backend.state is BackendState.ROUTABLE for backend in self.router.by_id.values())


@define(eq=False)
class Session:
    """One client of a gateway."""

    service: str
    connection: Connection | None = None  #: while it is open
    asked_at: float = 0.0
    retry_at: float = 0.0  #: while there is no instance for it


class FakeGateway:
    """A gateway worker, as far as its manager sees it."""

    def __init__(self, player: Player, node: FakeNode) -> None:
        self._player, self._node = player, node
        self.worker_id = f"wrk_{secrets.token_hex(8)}"
        self.sessions: dict[str, Session] = {}  #: open, by the id of their connection
        self.asking: dict[int, Session] = {}  #: by ticket
        self.homeless: deque[Session] = deque()
        self.linked = False  #: and has a table
        self._seats = SharedSeats(self._say)
        self._limits: dict[str, int] = {}
        self._tickets, self._version = count(1), 0
        self._link: Link[protocol.Report, protocol.Order] | None = None
        self._lease = Lease(30.0)
        self._patience = silence_patience()
        self._unheard: list[ConnectionEnd] = []

    async def run(self) -> None:
        """Until cancelled: a manager after the other, as a worker does."""
        pause_s, credentials, source = _REDIAL_S[0], self._node.credentials, self._node.address
        manager, patience = self._player.manager, dial_patience()
        while True:
            with suppress(OSError, AgentManagerError, trio.BrokenResourceError):
                stream = await dial(manager, credentials, WORKER_PROTOCOL, source=source, patience=patience)
                try:
                    await self._converse(Counting(stream, self._player.traffic, "gateway"))
                    pause_s = _REDIAL_S[0]
                finally:
                    self._detach()
                    await trio.aclose_forcefully(stream)
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, _REDIAL_S[1])

    async def _converse(self, stream: trio.abc.Stream) -> None:
        link = Link(
            stream,
            protocol.encode,
            _decode,
            heartbeat_s=HEARTBEAT_S,
            silence_s=self._patience.seconds,
        )
        hello = protocol.Hello(
            self.worker_id, self._node.address, 9090, False, 0, "bench", False, protocol.VERSION,
            os.getpid(), Gate(self._node.address, _GATES_FROM),
        )  # fmt: skip
        link.put(
            hello,
            *(protocol.Opened(it.connection) for it in self.sessions.values() if it.connection is not None),
            *map(protocol.Closed, self._unheard),
            protocol.Declared(self._seats.attach()),
            protocol.Renew(self._lease.ask(trio.current_time())),
        )
        self._unheard.clear()
        self._link = link
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                nursery.start_soon(self._renew)
                while (order := await link.receive()) is not None:
                    self._obey(order)
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass
        finally:
            self._patience.learn(in_vain=link.silent_soon)

    def _detach(self) -> None:
        if self._link is not None:
            self._link, self.linked, self._version = None, False, 0
            self._seats.detach()
            self._lease.unlinked()
            self.homeless.extend(self.asking.values())
            self.asking.clear()

    async def _renew(self) -> None:
        while True:
            await trio.sleep(1)
            self._say(protocol.Renew(self._lease.ask(trio.current_time())))

    def _say(self, report: protocol.Report) -> None:
        if self._link is not None:
            self._link.put(report)

    def _obey(self, order: protocol.Order) -> None:
        match order:
            case protocol.Table():
                self._routes_by(order)
                backends = order.table.backends
                self._limit({it.instance_id: it.max_sessions for it in backends}, whole=True)
                self._leave_those_gone()
                self.linked = True
            case protocol.Changes() if order.since == self._version:
                self._routes_by(order)
                self._limit({it.instance_id: it.max_sessions for it in order.change.backends})
                self._limit(dict.fromkeys(order.change.gone, 0))
                ended = {it.instance_id for it in order.change.backends if not it.state.keeps_sessions}
                self._leave_those_gone(ended | set(order.change.gone))
            case protocol.Changes():
                raise AssertionError("changes of a table that this gateway does not have")
            case protocol.SeatChanges():
                self._seats.know(order.seats, whole=order.whole)
            case Grant(ticket, instance_id):
                self._seats.granted(instance_id)
                if (session := self.asking.pop(ticket, None)) is not None:
                    self._player.grants.append(time.monotonic() - session.asked_at)
                    if (backend := self._player.view.router.by_id.get(instance_id)) is not None:
                        self._seats.take(backend)
                        self._opened(session, backend)
                    else:
                        self.homeless.append(session)
                self._seats.settle(instance_id)
            case protocol.Renewed(number):
                self._lease.answered(number)
            case protocol.Drain(instance_id):
                self._leave(instance_id, "gateway", 1012)
            case protocol.End():
                raise trio.BrokenResourceError("the manager has it end")

    def _routes_by(self, order: protocol.Table | protocol.Changes) -> None:
        self._player.traffic[type(order).__name__] += 1
        self._player.view.obey(order)
        self._version = order.version
        self._say(protocol.Applied(order.version))

    def _limit(self, limits: dict[str, int], *, whole: bool = False) -> None:
        if whole:
            limits = {**dict.fromkeys(self._limits, 0), **limits}
        for instance_id, most in limits.items():
            if most != self._limits.get(instance_id, 0):
                self._seats.set_limit(instance_id, most)
                self._limits[instance_id] = most
                if not most:
                    del self._limits[instance_id]

    # Clients

    def open(self, session: Session) -> None:
        """As for a client that has come: it gets a seat, or waits for one."""
        members = self._player.view.of_service(session.service)
        members = [it for it in members if it.instance_id not in self._seats.full] or members
        if not (members and self._link):
            self.homeless.append(session)
            return
        random.shuffle(members)
        first = members[0]
        if first.instance_id not in self._seats.full and self._seats.take(first):
            self._opened(session, first)
            return
        ticket = next(self._tickets)
        session.asked_at = time.monotonic()
        self.asking[ticket] = session
        self._seats.ask(ticket, [it.instance_id for it in members])

    def _opened(self, session: Session, backend: Backend) -> None:
        session.connection = Connection(
            f"con_{secrets.token_hex(8)}", "192.0.2.7", 40_000, backend.service_id, backend.service_name,
            backend.instance_id, None, f"/services/{backend.service_name}", utc_now(), 0.0, 0, 0, 0, 0,
            handshake_s=0.004,
        )  # fmt: skip
        self.sessions[session.connection.connection_id] = session
        self._say(protocol.Opened(session.connection))

    def close(self, session: Session, by: str = "client", code: int = 1000) -> None:
        connection, session.connection = session.connection, None
        assert connection is not None
        del self.sessions[connection.connection_id]
        end = ConnectionEnd(
            connection.connection_id, connection.service_id, connection.instance_id, connection.started_at,
            utc_now(), by, code, "", 1000, 5000, 10, 50, 0.004, 0.25,
        )  # fmt: skip
        if self._link is None:
            self._unheard.append(end)
        self._say(protocol.Closed(end))
        self._seats.give_back(connection.instance_id)

    def _leave(self, instance_id: str, by: str, code: int) -> None:
        """All its sessions there end, and come back elsewhere."""
        for session in [it for it in self.sessions.values() if it.connection.instance_id == instance_id]:
            self.close(session, by, code)
            self._player.moved += 1
            self.homeless.append(session)

    def _leave_those_gone(self, gone: set[str] | None = None) -> None:
        known = self._player.view.router.by_id
        if gone is None:
            gone = {it.connection.instance_id for it in self.sessions.values()} - known.keys()
        for instance_id in gone:
            if self._seats.in_use(instance_id):
                self._leave(instance_id, "backend", 1006)

    def look(self) -> None:
        """What is due: those who wait for an instance try again; of busy sessions it says what they did."""
        for _ in range(len(self.homeless)):
            self.open(self.homeless.popleft())

    def report(self, share: float) -> None:
        """Once a second: so large a share of the sessions had a message."""
        for session in random.sample(list(self.sessions.values()), int(len(self.sessions) * share)):
            assert session.connection is not None
            session.connection = evolve(
                session.connection,
                bytes_from_client=session.connection.bytes_from_client + 100,
                bytes_to_client=session.connection.bytes_to_client + 500,
                messages_from_client=session.connection.messages_from_client + 1,
                messages_to_client=session.connection.messages_to_client + 5,
            )
            self._say(protocol.Progress.of(session.connection))


class FakeNode:
    def __init__(self, player: Player, name: str, address: str, directory: Path) -> None:
        self._player, self.name, self.address, self._directory = player, name, address, directory
        self.credentials = Credentials(directory / "credentials")
        self.processes = Processes(Behaviour(ready_after_s=0.05, stop_takes_s=0.02))
        self.gateway = FakeGateway(player, self)
        self.node: Node
        self._gateway_runs = trio.Event()
        self._dial_patience = dial_patience()
        self._scope = trio.CancelScope()

    async def join(self, secret: Secret) -> None:
        self._directory.mkdir(parents=True)
        config = evolve(
            new_config(self._player.manager), name=self.name, address=self.address, labels={"bench": "1"}
        )
        config = await join_cluster(self._directory, config, secret)
        facts = Facts(
            config.node_id, f"host-{self.name}", self.address, config.labels, boot_id=self.name,
            agentmgr=__version__, python=platform.python_version(),
        )  # fmt: skip
        self.node = Node(self._directory, self.processes, facts, self._dial)
        self.node.handle(KeepGateways, self._keep_gateways)
        self.node.handle(AwaitGateway, self._await_gateway)
        self.node.handle(KillGateway, lambda order: Done())

    async def _dial(self) -> trio.abc.Stream:
        stream = await dial(
            self._player.manager,
            self.credentials,
            NODE_PROTOCOL,
            source=self.address,
            patience=self._dial_patience,
        )
        return Counting(stream, self._player.traffic, "node")

    def _keep_gateways(self, order: KeepGateways) -> Done:
        if order.gateways:
            self._gateway_runs.set()
        return Done()

    async def _await_gateway(self, order: AwaitGateway) -> Done:
        if order.worker_id == self.gateway.worker_id:
            await trio.sleep_forever()
        return Done()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.node.run)
                await self._gateway_runs.wait()
                nursery.start_soon(self.gateway.run)

    def lose(self) -> None:
        """As a machine without power: nothing of it is there any more, and nobody says so."""
        self._scope.cancel()


class Player:
    """What each order does; its answer is what the method returns."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery, self._directory = nursery, directory
        self.nodes: dict[str, FakeNode] = {}
        self.view = View()
        self.traffic = Counter[str]()
        self.grants: list[float] = []  #: seconds from each question for a seat to its answer
        self.moved = 0  #: sessions that had to go to another instance
        self.manager: ManagerAddress
        self._services: list[str] = []
        self._pace = self._share = 0.0
        self._target = 0
        self._due = 0.0

    async def join(self, manager: list[Any], secret: str, nodes: dict[str, str], services: list[str]) -> None:
        """`nodes`: addresses by name. Returns when all have joined."""
        self.manager, self._services = ManagerAddress(*manager), services
        few = trio.CapacityLimiter(_JOIN_AT_ONCE)

        async def join(node: FakeNode) -> None:
            async with few:
                await node.join(Secret.parse(secret))

        async with trio.open_nursery() as joining:
            for name, address in nodes.items():
                node = self.nodes[name] = FakeNode(self, name, address, self._directory / name)
                joining.start_soon(join, node)
        for node in self.nodes.values():
            self._nursery.start_soon(node.run)

    async def clients(self, count: int, per_s: float, churn: bool, busy: float) -> None:
        """So many sessions at each gateway, which come (`churn`: and go) at that pace over all of them; a
        share of `busy` of them has a message each second.
        """
        self._target, self._pace, self._churn, self._share = count, per_s, churn, busy

    async def crash(self, node: str, instances: int) -> float:
        """Returns when, by the monotonic clock."""
        alive = [it for it in self.nodes[node].processes.running if it._exit is None]
        for child in random.sample(alive, instances):
            child.die(Exit(signal=11))
        return time.monotonic()

    async def lose(self, node: str) -> int:
        """Returns how many instances were there."""
        lost = self.nodes.pop(node)
        lost.lose()
        return len(lost.node.instances)

    async def applied(self) -> dict[int, list[float]]:
        """When each gateway had each of the latest tables, by the monotonic clock."""
        return {version: self.view.applied[version] for version in sorted(self.view.applied)[-50:]}

    async def figures(self) -> dict[str, Any]:
        gateways = [node.gateway for node in self.nodes.values()]
        grants, self.grants = self.grants, []
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "nodes": sum(node.node.linked for node in self.nodes.values()),
            "gateways": sum(it.linked for it in gateways),
            "routable": self.view.routable,
            "version": self.view.version,
            "tables_at": min((it._version for it in gateways), default=0),
            "instances": sum(it.run is not None and it.run.state.ready and it.run.state.end is None
                             for node in self.nodes.values() for it in node.node.instances.values()),
            "launches": sum(node.processes.launches for node in self.nodes.values()),
            "sessions": sum(len(it.sessions) for it in gateways),
            "waiting": sum(len(it.asking) + len(it.homeless) for it in gateways),
            "moved": self.moved,
            "grants": grants,
            "traffic": dict(self.traffic),
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }  # fmt: skip

    async def run(self) -> None:
        """Has clients come and go; until cancelled."""
        self._churn, second, began = False, 0, trio.current_time()
        while True:
            await trio.sleep(_TICK_S)
            gateways = [node.gateway for node in self.nodes.values() if node.gateway.linked]
            for gateway in gateways:
                gateway.look()
            self._come_and_go(gateways)
            if trio.current_time() - began >= second + 1:
                second = int(trio.current_time() - began)
                for gateway in gateways:
                    gateway.report(self._share)

    def _come_and_go(self, gateways: list[FakeGateway]) -> None:
        self._due = min(self._due + self._pace * _TICK_S, 10_000)
        missing = [it for it in gateways if self._count(it) < self._target]
        surplus = [it for it in gateways if self._count(it) > self._target]
        for gateway in surplus:
            for session in list(gateway.sessions.values())[: len(gateway.sessions) - self._target]:
                gateway.close(session)
        while self._due >= 1 and gateways and (missing or self._churn):
            self._due -= 1
            gateway = random.choice(missing or gateways)
            if not missing and gateway.sessions:
                gateway.close(gateway.sessions[next(iter(gateway.sessions))])  # the oldest
            gateway.open(Session(random.choice(self._services)))
            missing = [it for it in missing if self._count(it) < self._target]
        if not (missing or self._churn):
            self._due = 0

    @staticmethod
    def _count(gateway: FakeGateway) -> int:
        return len(gateway.sessions) + len(gateway.asking) + len(gateway.homeless)


@asynccontextmanager
async def _lines(fd: int) -> AsyncIterator[AsyncIterator[bytes]]:
    async def lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[bytes]:
        rest = b""
        async for data in stream:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line

    async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
        yield lines(stream)


async def main(directory: Path) -> None:
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    async with trio.open_nursery() as nursery, _lines(0) as orders:
        player = Player(nursery, directory)
        nursery.start_soon(player.run)
        async for line in orders:
            name, arguments = json.loads(line)
            do: Callable[..., Any] = partial(getattr(player, name), **arguments)
            print(json.dumps(await do()), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    gc.set_threshold(100_000)  # thousands of instances in one process: a real node has its own
    trio.run(main, Path(sys.argv[1]))
