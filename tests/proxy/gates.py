"""Two gateways of one cluster: clients are at the one, the instances behind the gate of the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, field

from agentmgr.ca import Authority
from agentmgr.core.routing import Backend, Gate, RoutingTable
from agentmgr.credentials import Credentials
from agentmgr.proxy import Gateway, GatewayLimits

from .conftest import Lab, Stage

NEAR, FAR, THIRD = "nod_00000000000000aa", "nod_00000000000000bb", "nod_00000000000000cc"


class Cluster:
    """A CA, and the credentials of its members."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = Authority.open(directory / "manager")

    def member(self, node_id: str, **issued: Any) -> Credentials:
        directory = self._directory / node_id
        directory.mkdir(exist_ok=True)
        credentials = Credentials(directory)
        request = credentials.make_request()
        credentials.keep(self.authority.issue(request, node_id, **issued), self.authority.pem)
        return credentials


@define
class Crossing:
    """`near` serves clients, `gateway` has the gate."""

    near: Stage
    gateway: Gateway
    gate: Gate
    table: RoutingTable
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@asynccontextmanager
async def crossing(
    lab: Lab, cluster: Cluster, *backends: Backend, limits: GatewayLimits | None = None, **options: Any
) -> AsyncIterator[Crossing]:
    """The instances are on the node of the gate, but for those that say on which they are."""
    limits = limits or GatewayLimits(close_timeout_s=0.5)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    gate = Gate("127.0.0.1", listeners[0].socket.getsockname()[1])
    table = RoutingTable(
        tuple(b if b.node_id else evolve(b, node_id=FAR) for b in backends),
        gates={NEAR: Gate("127.0.0.1", 9), FAR: gate},
    )
    far = Gateway(table, limits=limits, node_id=FAR, credentials=cluster.member(FAR))
    async with listeners[0], trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await far.serve([], gate_listeners=listeners, task_status=task_status)

        await nursery.start(serve)
        async with lab.gateway(
            *table.backends,
            limits=limits,
            table={"gates": table.gates},
            node_id=NEAR,
            credentials=cluster.member(NEAR),
            **options,
        ) as stage:
            yield Crossing(stage, far, gate, table, scope)
        nursery.cancel_scope.cancel()


class Cable:
    """The way to a gate, on which TLS records can be counted, held and cut."""

    def __init__(self, to: Gate, nursery: trio.Nursery) -> None:
        self._to = to
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self.cut_after: int | None = None  #: once, after so many records of the gate on one connection
        self.up = trio.Event()
        self.up.set()

    async def lay(self) -> Gate:
        listeners = await self._nursery.start(partial(trio.serve_tcp, self._carry, 0, host="127.0.0.1"))
        return Gate("127.0.0.1", listeners[0].socket.getsockname()[1])

    def pull(self) -> None:
        """Nothing goes through any more, and neither end notices."""
        self.up = trio.Event()

    def cut(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    async def _carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(self._to.host, self._to.port)
        async with near, far, trio.open_nursery() as nursery:
            self._scopes.add(nursery.cancel_scope)
            nursery.start_soon(self._there, near, far)
            await self._back(far, near)
            nursery.cancel_scope.cancel()

    async def _there(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in near:
                await self.up.wait()
                await far.send_all(data)
            await far.send_eof()

    async def _back(self, far: trio.SocketStream, near: trio.SocketStream) -> None:
        received, records = b"", 0
        with suppress(trio.BrokenResourceError):
            async for data in far:
                received += data
                while 5 <= len(received) >= (size := 5 + int.from_bytes(received[3:5], "big")):
                    await self.up.wait()
                    if records == self.cut_after:
                        self.cut_after = None
                        return
                    await near.send_all(received[:size])
                    received = received[size:]
                    records += 1
