"""The gateways on nodes: which nodes have which, and what their daemons know of the workers.

Each node has a gateway worker: by its gate other gateways reach the instances of the node. The setting
`gateways` decides on how many of them it takes clients too, at the node's address and the gateway's port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import trio
from attrs import evolve

from ..models.nodes import NodeState
from ..node.protocol import (
    AwaitGateway,
    Done,
    GatewayOrder,
    GatewayTroubles,
    KeepGateways,
    KillGateway,
    Order,
)
from ..settings import Settings
from .node_handle import NodeHandle, NodeLost, OrderFailed
from .nodes import Nodes


class OneWorker(Protocol):
    """Of a node (`manager.node_workers.NodeWorker`)."""

    @property
    def node_id(self) -> str: ...
    @property
    def worker_id(self) -> str: ...


class ClusterGateways:
    def __init__(self, nodes: Nodes, settings: Settings, *, lease_s: float) -> None:
        """`lease_s`: of the seats that a gateway on a node holds."""
        self._nodes = nodes
        self._settings = _for_a_gateway(settings)
        self._lease_s = lease_s
        self._ports: list[tuple[Settings, int]] = []  # where clients are served, in the order of `serving`
        self._chosen: list[str] = []  # ids of nodes where they are, the first chosen first
        self._given: dict[str, KeepGateways] = {}  # by node id: its latest order
        self._troubles: dict[str, tuple[str, ...]] = {}  # by node id
        self._known: set[str] = set()
        self._is_over = False

    async def run(self) -> None:
        """Orders what each node is to have, whenever that changes; until cancelled."""
        while True:
            self._order()
            await self._nodes.news.park()

    @contextmanager
    def serving(self, settings: Settings, port: int) -> Iterator[None]:
        """Inside the block the nodes serve clients at that port too, as the setting `gateways` has it."""
        served = _for_a_gateway(settings), port
        self._ports.append(served)
        self._order()
        try:
            yield
        finally:
            self._ports.remove(served)
            self._order()

    def stop(self, *, leave: bool) -> None:
        """Nothing more is ordered: the manager ends. With `leave` they serve on, for the next one."""
        if not (self._is_over or leave):
            for handle in self._nodes:
                handle.post(KeepGateways(()))
        self._is_over = True

    def troubles(self) -> tuple[str, ...]:
        """Why gateways on nodes do not run, for the user."""
        return tuple(
            f"node {handle.name}: {reason}"
            for handle in self._nodes
            for reason in self._troubles.get(handle.node_id, ())
        )

    def _order(self) -> None:
        if self._is_over:
            return
        handles = {handle.node_id: handle for handle in self._nodes}
        for gone in self._known - handles.keys():
            self._known.discard(gone)
            self._given.pop(gone, None)
            self._troubles.pop(gone, None)
        self._chosen = choose(self._settings.gateways, self._chosen, handles.values())
        for node_id, handle in handles.items():
            if node_id not in self._known:
                self._known.add(node_id)
                handle.on(GatewayTroubles, partial(self._has_troubles, node_id))
            if handle.lost is not None:
                self._given.pop(node_id, None)  # it was dropped, and is given again when the node is back
            elif handle.linked and (order := self._wanted(handle)) != self._given.get(node_id):
                self._given[node_id] = order
                handle.post(order)

    def _wanted(self, handle: NodeHandle) -> KeepGateways:
        if handle.node_id in self._chosen and self._ports:
            return KeepGateways(
                tuple(
                    GatewayOrder(settings, handle.address, port, lease_s=self._lease_s)
                    for settings, port in self._ports
                )
            )
        gate = GatewayOrder(self._settings, handle.address, 0, listens=False, lease_s=self._lease_s)
        # Until the gateway is served here, what a former manager has ordered stays.
        return KeepGateways((gate,), at_least=not self._ports)

    def _has_troubles(self, node_id: str, said: GatewayTroubles) -> None:
        self._troubles[node_id] = said.reasons

    # What the daemons know (`manager.node_workers.NodeProcesses`)

    async def ended(self, worker: OneWorker) -> bool:
        """Returns True when the worker's process has ended, False when its node is lost or forgotten."""
        return await self._done(worker.node_id, AwaitGateway(worker.worker_id))

    async def kill(self, worker: OneWorker) -> bool:
        """As `ended`; kills it."""
        return await self._done(worker.node_id, KillGateway(worker.worker_id))

    async def _done(self, node_id: str, order: Order) -> bool:
        while (handle := self._nodes.get(node_id)) is not None:
            try:
                await handle.call(order, Done)
                return True
            except NodeLost:
                return False
            except OrderFailed:  # as where no descriptor is left there
                await trio.sleep(1)
        return False

    async def linked(self, node_id: str) -> None:
        """Returns when the node has a link; never for one that was forgotten."""
        while (handle := self._nodes.get(node_id)) is None or not handle.linked:
            await self._nodes.news.park()


def choose(setting: str, chosen: Iterable[str], handles: Iterable[NodeHandle]) -> list[str]:
    """The ids of the nodes whose gateways take clients, those that were `chosen` before first, then by name.

    One that is lost makes room for another; a cordoned one keeps its own, and is not chosen anew. Silent ones
    count: the next manager knows no links at first, and would choose others.
    """
    there = {handle.node_id: handle for handle in handles if handle.lost is None}
    kept = [node_id for node_id in chosen if node_id in there]
    new = sorted(
        (handle.name, handle.node_id)
        for handle in there.values()
        if handle.state is not NodeState.CORDONED and handle.node_id not in kept
    )
    most = {"head": 0, "all": len(there)}.get(setting)
    most = int(setting) if most is None else most
    return [*kept, *(node_id for _, node_id in new)][:most]


def _for_a_gateway(settings: Settings) -> Settings:
    """Without what it does not need, and which may have a password."""
    return evolve(settings, sessions_url=None)
