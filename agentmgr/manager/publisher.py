"""The routing table of the gateway: made of all that is registered and runs, and given to those who route."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import trio
from attrs import evolve

from ..core.moves import Moved
from ..core.routing import RoutingTable
from ..core.table_change import TableChange
from ..core.view import Backends, routing_table
from ..supervisor import Supervisor
from .registry import Registry
from .tokens import Tokens
from .worker_manager import WorkerManager

_LONGEST_PAUSE_S = 0.2
_PAUSE_PER_BACKEND_S = 50e-6  #: a table takes about a tenth of this to make (measured)
_PAUSE_PER_WORKER_S = 2e-3  #: to send it and to hear that it was applied takes about a fifth of this


class Publisher:
    """Makes a routing table when something has changed, and gives it to the gateway and its workers.

    The first change is published at once. Those that follow share the next one, after a pause that grows with
    the table and with the workers: 50 ms for 1,000 backends, and as much for 25 workers. A thousand starts
    would else take two thousand tables.
    """

    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        worker_manager: WorkerManager,
        tokens: Tokens,
        *,
        own_pages: Callable[[], frozenset[str]],
        falling_asleep: Callable[[], Set[str]],
        nodes: Callable[[], frozenset[str]] = frozenset,
        sessions_url: str | None = None,
        moved: Callable[[], Mapping[str, Mapping[str, Moved]]] = dict,
    ) -> None:
        """`falling_asleep`: the ids of services whose instances take no new client; `nodes`: of the nodes
        that are neither lost nor forgotten. `moved`: as in a routing table.
        """
        self._registry = registry
        self._supervisor = supervisor
        self._worker_manager = worker_manager
        self._tokens = tokens
        self._own_pages = own_pages
        self._falling_asleep, self._nodes, self._moved = falling_asleep, nodes, moved
        self._backends = Backends(sessions_url)
        self._stale = trio.Event()
        self._published = trio.Event()

    def changed(self) -> None:
        """The gateway's table is out of date; it gets another one in a moment."""
        self._stale.set()

    @property
    def next_table(self) -> trio.Event:
        """Set when the next one is published: something may be up that was not."""
        return self._published

    async def published(self) -> bool:
        """Returns when the gateway and its workers know of all that has changed so far.

        False: a worker may not know it, as it does not answer.
        """
        if self._stale.is_set():
            await self._published.wait()
        return await self._worker_manager.applied()

    async def run(self) -> None:
        """Publishes a table after each change, until cancelled."""
        gateway, before = self._worker_manager.gateway, RoutingTable()
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            table = routing_table(
                self._registry.services(),
                self._registry.rules(),
                self._supervisor.instances(),
                self._supervisor.tokens(),
                falling_asleep=self._falling_asleep(),
                restarting=self._supervisor.restarting(),
                kept_ids=self._supervisor.kept_ids(),
                backends=self._backends,
            )
            table = evolve(
                table,
                own_pages=self._own_pages(),
                gates=self._worker_manager.gates,
                nodes=self._nodes(),
                moved=self._moved(),
            )
            if (change := TableChange.between(before, table)) is not None:
                gateway.change(change)
            else:
                gateway.update(table)
            before = table
            gateway.keep_tokens(self._tokens.ids | self._tokens.left_open)
            self._worker_manager.publish(table)
            self._published.set()
            self._published = trio.Event()
            pause_s = _PAUSE_PER_BACKEND_S * len(table.backends)
            pause_s += _PAUSE_PER_WORKER_S * len(self._worker_manager)
            await trio.sleep(min(_LONGEST_PAUSE_S, pause_s))
