"""The processes that serve the gateway on one port: started, adopted, restarted, ended.

They outlive a manager that is killed. The next manager finds them by the files that they keep locked
(`worker.pidfile`), and waits for them to connect to its socket. At an address that it serves it adopts those
with the same options and ends the others. Those at other addresses keep serving until the manager ends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import trio
from attrs import evolve

from ..core.restart import Exit
from ..errors import ManagerError, leaves
from ..process.listening import bind
from ..process.paths import RuntimePaths
from ..supervisor.process import Leader
from ..worker.keeping import END_S, DidNotStart, end, keep, new_id, start
from ..worker.pidfile import living
from ..worker.spec import WorkerSpec
from .worker_handle import WorkerHandle
from .worker_manager import WorkerManager

logger = logging.getLogger(__name__)

_RETURN_S = 3.0  #: a worker that lives connects to the next manager sooner than that
_LOOK_S = 0.02


async def await_returning(worker_manager: WorkerManager, paths: RuntimePaths) -> None:
    """Returns when every worker of a former manager has declared its seats.

    One that does not in time is killed, as its seats cannot be counted; a terminal's is left alone.
    """
    give_up_at = trio.current_time() + _RETURN_S
    while True:
        silent = [
            worker for worker in living(paths.workers) if not _declared(worker_manager.get(worker.worker_id))
        ]
        if not silent or trio.current_time() > give_up_at:
            break
        await trio.sleep(_LOOK_S)
    for worker in silent:
        if worker.guest:
            logger.warning("gateway worker %d does not answer; its connections are not counted", worker.pid)
        else:
            logger.warning("killing gateway worker %d: it does not answer", worker.pid)
            await end(worker, paths.workers, 0)


async def end_left(paths: RuntimePaths) -> int:
    """Ends the workers that a former manager left and that no other one adopted, but not those of terminals.

    Returns how many there were.
    """
    left = [worker for worker in living(paths.workers) if not worker.guest]
    async with trio.open_nursery() as nursery:
        for worker in left:
            nursery.start_soon(end, worker, paths.workers, END_S)
    return len(left)


def _declared(worker: WorkerHandle | None) -> bool:
    return worker is not None and worker.declared


OnNodes = Callable[[int], AbstractContextManager[None]]


def on_no_nodes(port: int) -> AbstractContextManager[None]:
    return nullcontext()


class WorkerSet:
    """`count` workers on one port. `spec` is what they have in common."""

    def __init__(
        self,
        spec: WorkerSpec,
        count: int,
        *,
        worker_manager: WorkerManager | None,
        on_nodes: OnNodes = on_no_nodes,
    ) -> None:
        """Without `worker_manager` they are a terminal's (`WorkerSpec.guest`), and end with this process.

        Inside the context that `on_nodes` makes, nodes serve that port too.
        """
        self._spec = spec
        self._count = count
        self._worker_manager = worker_manager
        self._on_nodes = on_nodes
        self._scope = trio.CancelScope()
        self._leaving = False
        self._lifeline: tuple[int, int] | None = None

    def stop(self, *, leave: bool = False) -> None:
        """Makes `run` end the workers and return; with `leave`, return at once and leave them running."""
        self._leaving = leave
        self._scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps them running until stopped or cancelled, or, where they are a terminal's, until a manager has
        ended them all. It counts as started when all serve, with the port.

        Raises `PortNotAvailable`, and `ManagerError` where the first start fails.
        """
        failures: list[ManagerError] = []
        try:
            with self._scope:
                await self._run(task_status)
        except* ManagerError as group:
            failures += leaves(group)
        for failure in failures:  # without a group around it
            raise failure

    async def _run(self, task_status: trio.TaskStatus[int]) -> None:
        adopted = self._mine()
        if adopted and not self._spec.port:
            self._spec = evolve(self._spec, port=adopted[0].hello.port)
        with ExitStack() as stack:
            port = await self._reserve(stack, exclusive=not adopted)
            self._spec = evolve(self._spec, port=port)
            stack.enter_context(self._on_nodes(port))
            if self._worker_manager is None:
                stack.enter_context(self._lifeline_open())
            fit = [worker for worker in adopted if worker.hello.options == self._spec.options][: self._count]
            for worker in adopted:
                if worker not in fit and self._worker_manager is not None:
                    self._worker_manager.end(worker)
            async with trio.open_nursery() as keeping:
                async with trio.open_nursery() as starting:
                    for slot, kept in enumerate(_by_slot(self._count, fit)):
                        starting.start_soon(keeping.start, self._keep, slot, kept)
                task_status.started(port)

    def _mine(self) -> list[WorkerHandle]:
        """Takes over those that serve at this address already, left by a former manager."""
        if self._worker_manager is None:
            return []
        here = self._worker_manager.left_at(self._spec.host)
        wanted = self._spec.port or min((worker.hello.port for worker in here), default=0)
        mine = [worker for worker in here if worker.hello.port == wanted]
        mine.sort(key=lambda worker: worker.hello.slot)
        self._worker_manager.kept.update(worker.hello.worker_id for worker in mine)
        return mine

    async def _reserve(self, stack: ExitStack, *, exclusive: bool) -> int:
        """Holds the port while workers come and go. No other program may share it unasked."""
        port = self._spec.port
        if exclusive:
            with ExitStack() as trial:
                for sock in await bind(self._spec.host, port):
                    trial.callback(sock.close)
                    port = sock.getsockname()[1]
        for sock in await bind(self._spec.host, port, shared=True):
            stack.callback(sock.close)
        return port

    async def _keep(
        self, slot: int, adopted: WorkerHandle | None, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Keeps a worker in the slot: the adopted one or a new one, and another when that has ended."""
        process = self._adopt(adopted) if adopted is not None else None
        if process is None:
            try:
                process = await self._start(slot)
            except DidNotStart as words:
                raise ManagerError(f"a gateway worker did not start: {words}") from None
        task_status.started()
        await keep(
            process,
            partial(self._start, slot),
            name=f"gateway worker {slot}",
            leaving=lambda: self._leaving,
            # Of a terminal's: its manager has sent `End`.
            is_last=lambda exit: self._worker_manager is None and exit == Exit(code=0),
        )

    def _adopt(self, worker: WorkerHandle) -> Leader | None:
        try:
            return Leader(worker.pid)
        except OSError:  # it has just died
            return None

    async def _start(self, slot: int) -> Leader:
        """A worker that serves. Raises `DidNotStart`."""
        lifeline = None if self._lifeline is None else self._lifeline[0]
        spec = evolve(self._spec, worker_id=new_id(), slot=slot, lifeline=lifeline)
        if self._worker_manager is not None:
            self._worker_manager.kept.add(spec.worker_id)
        return await start(spec)

    @contextmanager
    def _lifeline_open(self) -> Iterator[None]:
        self._lifeline = os.pipe()
        try:
            yield
        finally:
            for fd in self._lifeline:
                os.close(fd)


def _by_slot(count: int, adopted: Iterable[WorkerHandle]) -> list[WorkerHandle | None]:
    """The adopted worker for each slot, if any; each keeps its own where that is below `count`."""
    left = {worker.hello.slot: worker for worker in adopted}
    kept = [left.pop(slot, None) for slot in range(count)]
    return [worker or (left.popitem()[1] if left else None) for worker in kept]
