"""The gateway workers on nodes: whether each lives, and those that a former manager left.

The manager cannot watch their processes. The node's daemon can, while it is linked; where the node is lost,
the worker's lease decides (`core.leases`). What a manager knows of them is in a file for each, for the next
one: it grants no seat until each has declared its own, or can have none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from ..codec import from_json, to_json
from ..core import leases
from ..errors import InvalidRequest
from ..replacing import replace

logger = logging.getLogger(__name__)

_KILL_S = 10.0  #: for a daemon to say that it has killed a worker


@frozen
class NodeWorker:
    """The content of a file."""

    node_id: str
    worker_id: str


class NodeProcesses(Protocol):
    """What the daemons of nodes know of their workers, and do with them."""

    async def ended(self, worker: NodeWorker) -> bool:
        """Returns True when the worker's process has ended, False when its node is lost or forgotten."""

    async def kill(self, worker: NodeWorker) -> bool:
        """As `ended`; kills it."""

    async def linked(self, node_id: str) -> None:
        """Returns when the node has a link."""


class NodeWorkers:
    def __init__(self, processes: NodeProcesses, directory: Path) -> None:
        """`directory`: of the files; made when it is needed."""
        self._processes = processes
        self._directory = directory
        self._lease_s = leases.LEASE_S + leases.MARGIN_S

    def keep(self, worker: NodeWorker) -> None:
        """Makes its file, before it gets a seat. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # A power cut may end this manager, and not the worker.
        replace(self._file(worker), to_json(worker).encode(), lasting=True)

    def forget(self, worker: NodeWorker) -> None:
        """Its seats are free."""
        self._file(worker).unlink(missing_ok=True)

    async def gone(self, worker: NodeWorker, silent_since: Callable[[], float | None]) -> bool:
        """Returns True when the worker's process has ended, False when its lease is surely over.

        `silent_since`: when its link ended; None while it has one.
        """
        while not await self._processes.ended(worker):
            if await self._lease_is_over(worker.node_id, silent_since):
                return False
        return True

    async def _lease_is_over(self, node_id: str, silent_since: Callable[[], float | None]) -> bool:
        """Returns True when it is, False when the node is linked before."""
        over = False

        def left_s() -> float:
            since, now = silent_since(), trio.current_time()
            return (now if since is None else since) + self._lease_s - now

        async with trio.open_nursery() as nursery:

            async def until_linked() -> None:
                await self._processes.linked(node_id)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_linked)
            while (pause_s := left_s()) > 0:  # noqa: ASYNC110  (its link may come and go meanwhile)
                await trio.sleep(pause_s)
            over = True
            nursery.cancel_scope.cancel()
        return over

    async def unheard_of(self, worker: NodeWorker) -> None:
        """Returns when a worker of a former manager has ended, or its lease is over: it has not come back."""
        with trio.move_on_after(self._lease_s):
            while not await self._processes.ended(worker):
                await self._processes.linked(worker.node_id)
            return
        logger.warning("killing a gateway worker of another node, if it lives: it does not answer")
        with trio.move_on_after(_KILL_S):
            await self._processes.kill(worker)

    def left(self) -> list[NodeWorker]:
        """The workers that a former manager knew."""
        found = []
        for path in self._directory.glob("*.node"):
            with suppress(FileNotFoundError, InvalidRequest):
                found.append(from_json(path.read_bytes(), NodeWorker))
        return found

    def _file(self, worker: NodeWorker) -> Path:
        return self._directory / f"{worker.worker_id}.node"
