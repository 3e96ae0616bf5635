"""Gateways on nodes: one limit over all of them, also for one that is cut off from the manager."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from agentmgr import ServiceConfig
from agentmgr.cluster import node_handle
from agentmgr.core import leases
from agentmgr.manager import worker_manager
from agentmgr.node import node
from agentmgr.process import detached
from tests.cluster.cables import Machines, machines
from tests.workers.conftest import COUNTING, connected, eventually, said

LEASE_S, MARGIN_S, HEARTBEAT_S, SILENCE_S, LOST_AFTER_S = 1.5, 0.5, 0.2, 2.0, 0.5
SEATS = 10  #: at each of two instances


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch, forks: Any) -> None:
    monkeypatch.setattr(leases, "LEASE_S", LEASE_S)
    monkeypatch.setattr(leases, "MARGIN_S", MARGIN_S)
    monkeypatch.setattr(worker_manager, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(node_handle, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(node, "HEARTBEAT_S", HEARTBEAT_S)
    monkeypatch.setattr(detached, "subprocess", SimpleNamespace(Popen=forks))


class Service:
    """Two instances with seats, on two nodes; and what they have seen."""

    def __init__(self, site: Machines, port: int) -> None:
        self._site = site
        self._port = port
        self.most: Counter[str] = Counter()  #: sessions at once, by pid of the instance
        self.served: Counter[str] = Counter()  #: sessions, by host of the gateway

    def connected(self, host: str) -> Any:
        return connected(f"ws://{host}:{self._port}")

    async def talk(self, websocket: WebSocketConnection) -> None:
        pid, most = (await said(websocket)).split()
        self.most[pid] = max(self.most[pid], int(most))

    async def come_and_go(self, host: str, times: int) -> None:
        """As a client that comes back whenever it is refused, or told to come back."""
        while times:
            try:
                async with self.connected(host) as websocket:
                    await self.talk(websocket)
                    await self.talk(websocket)
            except (ConnectionRejected, ConnectionClosed):
                continue
            times -= 1
            self.served[host] += 1


async def test_max_sessions_holds_over_four_gateways_and_with_one_of_them_cut_off(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    async with machines(tmp_path) as site, trio.open_nursery() as nursery:
        site.plane.cluster.nodes._liveness.lost_after_s = LOST_AFTER_S  # the setting allows no less than 5 s
        await site.manager.register_service(
            "counting",
            command=(sys.executable, str(tmp_path / "counting.py"), "{port}"),
            config=ServiceConfig(instances=2, max_sessions=SEATS, place_on=("node=in(b,c)",)),
            auto_start=True,
        )
        port = await nursery.start(partial(site.manager.serve_proxy, "127.0.0.1", 0, workers=1))
        service = Service(site, port)
        gateways = site.plane.worker_manager
        await eventually(lambda: len(running(site)) == 2)
        await eventually(lambda: sum(it.declared and it.hello.port == port for it in gateways) == 4)
        hosts = ["127.0.0.1", *(site.nodes[name].address for name in "bcd")]

        async with trio.open_nursery() as clients:
            for number in range(40):
                clients.start_soon(service.come_and_go, hosts[number % 4], 2)
        assert service.served == dict.fromkeys(hosts, 20)
        assert max(service.most.values()) <= SEATS

        cut_off = site.nodes["d"]
        async with trio.open_nursery() as clients, AsyncExitStack() as held:
            there = [await held.enter_async_context(service.connected(cut_off.address)) for _ in range(4)]
            for _ in range(2 * SEATS - 4):
                await service.talk(await held.enter_async_context(service.connected(hosts[0])))
            assert sorted(service.most.values()) == [SEATS, SEATS], "as many as there may be"
            for _ in range(4):
                clients.start_soon(service.come_and_go, hosts[1], 1)
            await eventually(lambda: gateways._ledger.asking(it.instance_id for it in running(site)) == 4)
            cut_off.cable.cut()
            for websocket in there:
                with pytest.raises(ConnectionClosed) as closed, trio.fail_after(30):
                    await websocket.get_message()
                assert closed.value.reason.code == 1012
            await eventually(lambda: service.served[hosts[1]] == 24)  # by the seats that those had
        assert max(service.most.values()) == SEATS, "and never more"

        async with trio.open_nursery() as clients:
            for number in range(40):
                clients.start_soon(service.come_and_go, hosts[number % 4], 2)
            await eventually(lambda: service.served[hosts[0]] > 25)
            cut_off.cable.mend()
        assert service.served[cut_off.address] == 40, "all are served in the end"
        assert max(service.most.values()) == SEATS
        site.manager.request_shutdown()
        await eventually(lambda: not any(node.daemon.gateways._gateways for node in site.nodes.values()))
        nursery.cancel_scope.cancel()


def running(site: Machines) -> list[Any]:
    return [it for it in site.manager.get_service("counting").instances if it.status == "running"]
