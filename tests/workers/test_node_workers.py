"""Workers on nodes, as the manager sees them: links over any stream, leases, what a former manager left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from agentmgr.core.leases import LEASE_S, MARGIN_S
from agentmgr.core.routing import Backend, Gate, RoutingTable
from agentmgr.core.shared_seats import Ask, Grant, Took
from agentmgr.link import HEARTBEAT_S, SILENCE_S, Link
from agentmgr.manager.connections import OpenConnections
from agentmgr.manager.node_workers import NodeWorker, NodeWorkers
from agentmgr.manager.worker_manager import WorkerManager
from agentmgr.models import Connection, utc_now
from agentmgr.settings import Settings
from agentmgr.worker import protocol

BACKEND = Backend("ins_a", "svc_1", "svc", "127.0.0.1", 1, node_id="node_c", max_sessions=2)


class Daemons:
    """What the nodes' daemons know, in the test's hands: `NodeProcesses`."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.lost: set[str] = set()
        self.killed: list[str] = []
        self._news = trio.Event()

    def changed(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def ended(self, worker: NodeWorker) -> bool:
        await trio.lowlevel.checkpoint()
        while worker.node_id not in self.lost and worker.worker_id in self.alive:
            await self._news.wait()
        return worker.node_id not in self.lost

    async def kill(self, worker: NodeWorker) -> bool:
        if worker.node_id not in self.lost:
            self.killed.append(worker.worker_id)
            self.alive.discard(worker.worker_id)
        return await self.ended(worker)

    async def linked(self, node_id: str) -> None:
        while node_id in self.lost:
            await self._news.wait()


@define
class FakeWorker:
    """The worker's side of a link: it applies each table, and keeps what it hears."""

    worker_id: str
    link: Link[Any, Any]
    cable: trio.CancelScope = field(factory=trio.CancelScope)
    heard: list[Any] = field(factory=list)
    news: trio.Event = field(factory=trio.Event)

    async def run(self) -> None:
        with self.cable:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.link.run)
                while (order := await self.link.receive()) is not None:
                    if isinstance(order, protocol.Table):
                        self.link.put(protocol.Applied(order.version))
                    self.heard.append(order)
                    self.news.set()
                    self.news = trio.Event()

    def cut(self) -> None:
        """Nothing of it arrives any more, and no end of file either."""
        self.cable.cancel()

    @property
    def granted(self) -> list[Grant]:
        return [order for order in self.heard if isinstance(order, Grant)]

    async def hears(self, order: Any) -> None:
        """Returns when it has heard that, or one of that class."""
        while not any(order in (heard, type(heard)) for heard in self.heard):
            await self.news.wait()


@define
class Site:
    workers: WorkerManager
    daemons: Daemons
    nursery: trio.Nursery
    node_workers: NodeWorkers

    async def worker(self, worker_id: str, node_id: str, seats: dict[str, int] | None = None) -> FakeWorker:
        """One that has declared."""
        self.daemons.alive.add(worker_id)
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.workers.serve_stream, theirs, node_id)
        link = Link[Any, Any](ours, protocol.encode, protocol.decode_order, heartbeat_s=HEARTBEAT_S)
        worker = FakeWorker(worker_id, link)
        self.nursery.start_soon(worker.run)
        link.put(
            protocol.Hello(
                worker_id, "127.0.0.2", 9090, False, 0, "", False, protocol.VERSION, 7, Gate("127.0.0.2", 5)
            ),
            protocol.Declared(seats or {}),
            protocol.Renew(1),
        )
        await worker.hears(protocol.Renewed)
        return worker


class _Observer:
    def __getattr__(self, name: str) -> Callable[[object], None]:
        return lambda _: None


@asynccontextmanager
async def a_manager(directory: Path, daemons: Daemons | None = None) -> AsyncIterator[Site]:
    daemons = daemons or Daemons()
    node_workers = NodeWorkers(daemons, directory)
    published = []
    workers = WorkerManager(
        Settings(),
        observer=_Observer(),
        access=_Open(),  # type: ignore[arg-type]
        wake=lambda service_id: None,
        vacated=lambda instance_id: None,
        clients_wait=lambda: None,
        node_workers=node_workers,
        gates_changed=lambda: published.append(publish()),
    )

    def publish() -> None:
        table = RoutingTable((BACKEND,), gates=workers.gates)
        workers.gateway.update(table)
        workers.publish(table)

    async def begin_to_grant() -> None:
        await workers.await_nodes()
        workers.resume()

    publish()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        nursery.start_soon(begin_to_grant)
        yield Site(workers, daemons, nursery, node_workers)
        nursery.cancel_scope.cancel()


class _Open:
    """No token is asked for."""

    class tokens:
        left_open: frozenset[str] = frozenset()
        policy = protocol.TokenPolicy()

        @staticmethod
        def all() -> tuple[()]:
            return ()


async def test_the_seats_of_a_lost_nodes_gateway_are_free_once_its_lease_is_over_and_not_before(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_manager(tmp_path) as site:
        cut_off = await site.worker("wrk_1", "node_a", {"ins_a": 2})
        waiting = await site.worker("wrk_2", "node_b")
        waiting.link.put(Ask(1, ("ins_a",)))
        assert set(site.workers.gates) == {"node_a", "node_b"}
        cut_off.cut()
        begun = trio.current_time()
        site.daemons.lost.add("node_a")
        site.daemons.changed()
        await waiting.hears(Grant(1, "ins_a"))
        free_after_s = trio.current_time() - begun
        assert LEASE_S + MARGIN_S < free_after_s <= SILENCE_S + LEASE_S + MARGIN_S
        fence = next(order for order in reversed(waiting.heard) if isinstance(order, protocol.Table))
        assert set(fence.table.gates) == {"node_b"}
        assert waiting.heard.index(fence) < waiting.heard.index(Grant(1, "ins_a"))
        assert site.node_workers.left() == [NodeWorker("node_b", "wrk_2")]


async def test_a_gateway_that_is_silent_keeps_its_seats_while_its_node_says_that_it_lives(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_manager(tmp_path) as site:
        cut_off = await site.worker("wrk_1", "node_a", {"ins_a": 2})
        waiting = await site.worker("wrk_2", "node_b")
        waiting.link.put(Ask(1, ("ins_a",)))
        cut_off.cut()
        site.daemons.lost.add("node_a")
        site.daemons.changed()
        await trio.sleep(SILENCE_S + LEASE_S + MARGIN_S - HEARTBEAT_S - 0.5)
        site.daemons.lost.clear()  # just in time
        site.daemons.changed()
        await trio.sleep(2 * (LEASE_S + MARGIN_S))
        assert waiting.granted == []
        site.daemons.alive.discard("wrk_1")
        site.daemons.changed()
        await waiting.hears(Grant(1, "ins_a"))


async def test_the_next_manager_grants_nothing_until_the_gateways_on_nodes_are_back_or_can_have_no_seat(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    daemons = Daemons()
    async with a_manager(tmp_path, daemons) as site:
        for number, node_id in enumerate(("node_a", "node_b", "node_c", "node_d")):
            await site.worker(f"wrk_{number}", node_id)
    daemons.alive.discard("wrk_1")  # it ends while no manager runs
    async with a_manager(tmp_path, daemons) as site:
        began = trio.current_time()
        newcomer = await site.worker("wrk_9", "node_d")
        newcomer.link.put(Ask(1, ("ins_a",)))
        await site.worker("wrk_0", "node_a", {"ins_a": 1})
        daemons.lost.add("node_c")
        await trio.sleep(LEASE_S)
        assert newcomer.granted == []
        assert site.workers.gateway.lobby.live == {"ins_a": 1}
        assert "ins_a" in site.workers._seats.full, "for the clients of the manager's own gateway too"
        await newcomer.hears(Grant(1, "ins_a"))
        assert trio.current_time() - began == pytest.approx(LEASE_S + MARGIN_S, abs=1)
        assert daemons.killed == ["wrk_3"], "it lives, and does not answer"
        await trio.testing.wait_all_tasks_blocked()
        assert {left.worker_id for left in site.node_workers.left()} == {"wrk_0", "wrk_9"}


async def test_a_node_cannot_speak_for_a_worker_of_another_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_manager(tmp_path) as site:
        await site.worker("wrk_1", "node_a", {"ins_a": 2})
        with trio.move_on_after(1):
            await site.worker("wrk_1", "node_b")
        assert "a worker of another machine" in caplog.text
        assert site.workers.get("wrk_1").node_id == "node_a"
        assert site.workers.get("wrk_1").link is not None


async def test_a_gateway_that_links_before_the_daemon_of_its_lost_node_is_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_manager(tmp_path) as site:
        site.daemons.lost.add("node_a")
        await trio.sleep(LEASE_S)
        await site.worker("wrk_1", "node_a", {"ins_a": 1})
        await trio.sleep(2 * (LEASE_S + MARGIN_S))
        worker = site.workers.get("wrk_1")
        assert worker is not None
        assert worker.link is not None
        assert not worker.given_up
        assert set(site.workers.gates) == {"node_a"}


async def test_what_a_connection_has_done_is_described_as_it_was_last_reported(tmp_path: Path) -> None:
    async with a_manager(tmp_path) as site:
        worker = await site.worker("w1", "node_a")
        opened = Connection(
            "con_1", "192.0.2.1", 1, "svc_1", "svc", "ins_a", None, "/", utc_now(), 0.0, 1, 2, 3, 4
        )
        worker.link.put(protocol.Opened(opened), protocol.Opened(evolve(opened, connection_id="con_2")))
        worker.link.put(protocol.Progress("con_1", 2.0, 10, 20, 30, 40), protocol.Declared({"ins_a": 2}))
        connections = OpenConnections(site.workers.gateway, site.workers)
        await site.workers.until(lambda: site.workers.gateway.active_connections("ins_a") == 2)  # said last
        assert connections.counts() == {("svc", "ins_a"): 2}
        now = trio.current_time()
        one, other = sorted(connections, key=lambda connection: connection.connection_id)
        assert evolve(one.describe(now), idle_s=0) == evolve(
            opened, bytes_from_client=10, bytes_to_client=20, messages_from_client=30, messages_to_client=40
        )
        assert one.describe(now + 5).idle_s >= 7.0, "nothing has come since the report, as far as is known"
        assert evolve(other.describe(now), idle_s=0) == evolve(opened, connection_id="con_2")
        relayed = connections.relayed({"svc_1"})["svc_1"]
        assert sum(it.bytes_from_client for it in relayed) == 11
        assert connections.relayed({"svc_2"}) == {}


async def test_a_worker_on_a_node_hears_of_seats_when_they_change_and_not_as_a_heartbeat(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_manager(tmp_path) as site:
        one, other = await site.worker("w1", "node_a"), await site.worker("w2", "node_b")
        await trio.sleep(30)

        def told(worker: FakeWorker) -> list[Any]:
            return [order.seats for order in worker.heard if isinstance(order, protocol.SeatChanges)]

        assert told(one) == told(other) == [{}], "how it was at first"
        other.link.put(Took("ins_b"))
        await trio.sleep(30)
        assert (told(one), told(other)) == ([{}, {"ins_b": 1}], [{}])
