"""The gateway workers that the daemon of a node keeps: real processes, and TLS to a manager's part."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define

from agentmgr import dialing
from agentmgr.ca import Authority
from agentmgr.core.leases import LEASE_S
from agentmgr.core.routing import RoutingTable
from agentmgr.credentials import Credentials, peer
from agentmgr.dialing import ManagerAddress, ManagerFile
from agentmgr.manager.node_workers import NodeWorker, NodeWorkers
from agentmgr.manager.worker_handle import WorkerHandle
from agentmgr.manager.worker_manager import WorkerManager
from agentmgr.models import TokenPolicy
from agentmgr.node.gateways import NodeGateways, OwnFacts
from agentmgr.node.protocol import AwaitGateway, GatewayOrder, KeepGateways, KillGateway
from agentmgr.process import detached
from agentmgr.settings import Settings
from agentmgr.worker import worker
from agentmgr.worker.dial import WORKER_PROTOCOL
from agentmgr.worker.pidfile import living
from agentmgr.worker.spec import ClusterManager
from tests.conditions import PATIENCE_S, read_to
from tests.ports import own_port
from tests.processes import alive
from tests.proxy.conftest import upgrade
from tests.workers.conftest import eventually

NODE = "nod_00112233aabbccdd"
ADDRESS = "127.0.0.2"


@define
class Site:
    """A manager's side, and the files of one node."""

    directory: Path
    workers: WorkerManager
    port: int  #: of the manager
    daemons: list[NodeGateways]
    troubles: list[tuple[str, ...]]

    def daemon(self) -> NodeGateways:
        """Another one, which the manager asks from now on."""
        file = ManagerFile(self.directory / "manager.json")
        file.write(ManagerAddress("127.0.0.1", self.port))
        facts = OwnFacts(NODE, self.directory / "credentials", ClusterManager(str(file.path), ADDRESS))
        self.daemons.append(NodeGateways(self.directory / "gateways", facts, self.troubles.append))
        return self.daemons[-1]

    def order(self, port: int, **options: Any) -> GatewayOrder:
        return GatewayOrder(
            Settings(**options.pop("settings", {})), ADDRESS, port, lease_s=LEASE_S, **options
        )

    @property
    def processes(self) -> dict[str, int]:
        return {found.worker_id: found.pid for found in living(self.directory / "gateways")}

    async def linked(self) -> WorkerHandle:
        """The one worker there is, once it has declared itself."""
        await eventually(lambda: [it.declared and it.link for it in self.workers] == [self._only().link])
        return self._only()

    def _only(self) -> Any:
        found = list(self.workers)
        return found[0] if len(found) == 1 else SimpleNamespace(link=object())


class _Open:
    """No token is asked for."""

    tokens = SimpleNamespace(all=lambda: (), policy=TokenPolicy(), left_open=frozenset())


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda _: None


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Any) -> Any:
    monkeypatch.setattr(detached, "subprocess", SimpleNamespace(Popen=forks))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Site]:
        authority = Authority.open(tmp_path / "ca")
        (tmp_path / "credentials").mkdir()
        of_node = Credentials(tmp_path / "credentials")
        of_node.keep(authority.issue(of_node.make_request(), NODE), authority.pem)
        own = Credentials(tmp_path / "ca")
        daemons: list[NodeGateways] = []

        class Processes:
            async def ended(self, worker: NodeWorker) -> bool:
                await daemons[-1].ended(AwaitGateway(worker.worker_id))
                return True

        workers = WorkerManager(
            Settings(),
            observer=_Silent(),
            access=_Open(),  # type: ignore[arg-type]
            wake=lambda service_id: None,
            vacated=lambda instance_id: None,
            clients_wait=lambda: None,
            node_workers=NodeWorkers(Processes(), tmp_path / "known"),  # type: ignore[arg-type]
        )
        workers.publish(RoutingTable())

        async def serve(tcp: trio.SocketStream) -> None:
            stream = trio.SSLStream(tcp, own.server_context(WORKER_PROTOCOL), server_side=True)
            with suppress(trio.BrokenResourceError):
                await stream.do_handshake()
                member = peer(stream)
                assert member is not None
                await workers.serve_stream(stream, member.node_id)

        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, serve, [listener])
            yield Site(tmp_path, workers, listener.socket.getsockname()[1], daemons, [])
            nursery.cancel_scope.cancel()

    yield opened
    for left in living(tmp_path / "gateways"):
        os.kill(left.pid, signal.SIGKILL)


async def status(port: int) -> int:
    """What a client of the gateway gets."""
    async with await trio.open_tcp_stream(ADDRESS, port) as stream:
        await stream.send_all(upgrade("/"))
        return int((await read_to(stream, b"\r\n\r\n")).split()[1])


async def test_without_a_manager_a_new_gateway_has_the_gate_and_the_table_of_the_one_before(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MANAGER_S", 0.2)
    monkeypatch.setattr(dialing, "_LOOK_S", 0.1)
    port = own_port()
    async with site() as s, trio.open_nursery() as nursery:
        nursery.start_soon((daemon := s.daemon()).run)
        await trio.testing.wait_all_tasks_blocked()
        daemon.keep(KeepGateways((s.order(port),)))
        first, gate = await s.linked(), s.workers.gates[NODE]
        await eventually((s.directory / "gateways" / f"{port}-0.table").exists)
        manager = ManagerFile(s.directory / "manager.json")
        manager.write(ManagerAddress("127.0.0.1", own_port()))  # where none is
        await eventually(lambda: first.link is None)

        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: s.processes and first.pid not in s.processes.values())
        for each in (gate.port, port):
            with trio.fail_after(PATIENCE_S):
                while True:
                    with suppress(OSError):
                        await (await trio.open_tcp_stream(ADDRESS, each)).aclose()
                        break
                    await trio.sleep(0.05)  # nothing tells of a listener
        assert await status(port) == 503, "it serves, and there is no service"

        manager.write(ManagerAddress("127.0.0.1", s.port))
        await eventually(lambda: any(it.link and it is not first for it in s.workers))
        assert s.workers.gates[NODE] == gate
        nursery.cancel_scope.cancel()


async def test_a_gateway_is_kept_through_its_own_death_and_its_daemons(site: Any) -> None:
    port = own_port()
    async with site() as s:
        async with trio.open_nursery() as nursery:
            nursery.start_soon((daemon := s.daemon()).run)
            await trio.testing.wait_all_tasks_blocked()
            daemon.keep(KeepGateways((s.order(port),)))
            first = await s.linked()
            assert (first.node_id, first.hello.port, first.pid) == (NODE, port, *s.processes.values())
            assert s.workers.gates[NODE].host == ADDRESS
            assert await status(port) == 503, "it serves, and there is no service"

            daemon.keep(KeepGateways((s.order(0, listens=False),), at_least=True))  # the next manager's first
            os.kill(first.pid, signal.SIGKILL)
            await first.gone.wait()
            second = await s.linked()
            assert second.hello.worker_id != first.hello.worker_id
            await eventually(lambda: s.troubles[-1:] == [()])
            assert "ended (SIGKILL)" in s.troubles[0][0]
            nursery.cancel_scope.cancel()

        assert alive(second.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon((daemon := s.daemon()).run)
            await trio.testing.wait_all_tasks_blocked()
            assert s.processes == {second.hello.worker_id: second.pid}, "taken over, and none beside it"
            assert await status(port) == 503

            daemon.keep(KeepGateways((s.order(port, settings={"fronts": "none"}),)))
            await second.gone.wait()
            third = await s.linked()
            assert await status(port) == 503
            await daemon.kill(KillGateway(third.hello.worker_id))
            await third.gone.wait()
            fourth = await s.linked()
            daemon.keep(KeepGateways(()))
            await fourth.gone.wait()
            assert s.processes == {}
            nursery.cancel_scope.cancel()


async def test_a_gateway_that_cannot_start_says_why_and_one_that_is_not_known_is_ended(site: Any) -> None:
    port = own_port()
    async with site() as s:
        (taken,) = await trio.open_tcp_listeners(port, host=ADDRESS)
        async with taken, trio.open_nursery() as nursery:
            nursery.start_soon((daemon := s.daemon()).run)
            await trio.testing.wait_all_tasks_blocked()
            daemon.keep(KeepGateways((s.order(0, listens=False), s.order(port))))
            await eventually(lambda: s.troubles)
            assert f"port {port} on {ADDRESS} is not available" in s.troubles[0][0]
            gate = await s.linked()
            assert gate.hello.port == 0
            assert s.workers.listeners() == [], "it has no clients of its own"
            nursery.cancel_scope.cancel()
        (s.directory / "gateways" / "gateways.json").unlink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.daemon().run)
            await gate.gone.wait()
            nursery.cancel_scope.cancel()
