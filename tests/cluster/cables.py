"""A manager in this process, and nodes on 127.0.0.2 and up: real daemons over TLS, gateways as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio
from attrs import define, evolve, field

from agentmgr import AgentManager
from agentmgr.dialing import ManagerAddress
from agentmgr.node.daemon import NodeConfig, NodeDaemon, join_cluster, new_config, running
from agentmgr.node.joining import Secret
from agentmgr.settings import ClusterMode, Settings


class Cable:
    """A relay between a node and the manager. Cut, it forwards nothing, and closes nothing either."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._whole = trio.Event()
        self._whole.set()
        self.port = 0

    def cut(self) -> None:
        self._whole = trio.Event()

    def mend(self) -> None:
        """What was under way arrives now."""
        self._whole.set()

    async def run(self, *, task_status: trio.TaskStatus[Self]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._relay, [listener])
            task_status.started(self)

    async def _relay(self, one: trio.SocketStream) -> None:
        await self._whole.wait()
        try:
            other = await trio.open_tcp_stream("127.0.0.1", self._to)
        except OSError:
            return
        async with other, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, one, other, nursery.cancel_scope)
            nursery.start_soon(self._pass_on, other, one, nursery.cancel_scope)

    async def _pass_on(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(65536):
                await self._whole.wait()
                await target.send_all(data)
            await self._whole.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._whole.wait()
        scope.cancel()


@define
class Machine:
    address: str
    cable: Cable
    daemon: NodeDaemon


@define
class Machines:
    manager: AgentManager
    nodes: dict[str, Machine] = field(factory=dict)

    @property
    def plane(self) -> Any:
        return self.manager._live()

    async def join(self, name: str, address: str, directory: Path, nursery: trio.Nursery) -> Machine:
        """Another node, which runs until `nursery` is cancelled."""
        cable = await nursery.start(Cable(self.plane.cluster.port).run)
        invitation = await self.manager.invite_nodes()
        config: NodeConfig = new_config(ManagerAddress("127.0.0.1", cable.port))
        place = directory / name
        place.mkdir()
        config = await join_cluster(
            place, evolve(config, name=name, address=address), Secret.parse(invitation.secret)
        )
        daemon = NodeDaemon(place, config, fork_server=False)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            async with running(daemon):
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(run)
        self.nodes[name] = Machine(address, cable, daemon)
        return self.nodes[name]


@asynccontextmanager
async def machines(directory: Path, names: str = "bcd", **settings: Any) -> AsyncIterator[Machines]:
    options = Settings(
        cluster=ClusterMode.JOINED, cluster_host="127.0.0.1", cluster_port=0, gateways="all", **settings
    )
    async with (
        trio.open_nursery() as nursery,
        AgentManager(directory / "m.db", settings=options) as manager,
    ):
        found = Machines(manager)
        async with trio.open_nursery() as joining:
            for number, name in enumerate(names, 2):
                joining.start_soon(partial(found.join, name, f"127.0.0.{number}", directory, nursery))
        for handle in found.plane.cluster.nodes:
            while not handle.linked:
                await handle.news.park()
        yield found
        nursery.cancel_scope.cancel()
