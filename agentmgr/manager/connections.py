"""The open connections of a manager: those of its own gateway, and those of workers.

To describe one takes some microseconds: what only counts, or looks for some among 100,000, must not describe
all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import trio

from ..core.stats import Relayed
from ..models import Connection
from ..proxy import Gateway
from .worker_manager import WorkerManager


class OpenConnection(NamedTuple):
    connection_id: str
    service_id: str
    service_name: str
    describe: Callable[[float], Connection]  #: as it is at that time of trio's clock


class OpenConnections:
    def __init__(self, gateway: Gateway, worker_manager: WorkerManager) -> None:
        self._gateway, self._worker_manager = gateway, worker_manager

    def __iter__(self) -> Iterator[OpenConnection]:
        for here in self._gateway.live_connections:
            to = here.backend
            yield OpenConnection(here.connection_id, to.service_id, to.service_name, here.describe)
        for live in self._worker_manager.live():
            it = live.opened
            yield OpenConnection(it.connection_id, it.service_id, it.service_name, live.describe)

    def described(self) -> tuple[Connection, ...]:
        now = trio.current_time()
        return tuple(it.describe(now) for it in self)

    def counts(self) -> Counter[tuple[str, str]]:
        """How many there are, by the name of their service and the id of their instance."""
        counts = Counter(
            (live.opened.service_name, live.opened.instance_id) for live in self._worker_manager.live()
        )
        counts.update(
            (it.backend.service_name, it.backend.instance_id) for it in self._gateway.live_connections
        )
        return counts

    def relayed(self, service_ids: Collection[str]) -> Mapping[str, list[Relayed]]:
        """What those of these services have relayed, by service id."""
        found = defaultdict[str, list[Relayed]](list)
        for connection in self._gateway.connections():
            found[connection.service_id].append(connection)
        for live in self._worker_manager.live():
            if live.opened.service_id in service_ids:
                found[live.opened.service_id].append(live)
        return found
