"""The processes that serve the gateway on one port: started, adopted, restarted, ended.

They outlive a manager that is killed. The next manager finds them by the files that they keep locked
(`worker.pidfile`), and waits for them to connect to its socket. At an address that it serves it adopts those
with the same options and ends the others. Those at other addresses keep serving until the manager ends.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex

import trio
from attrs import evolve

from ..codec import to_json
from ..core.restart import Again, Cause, Ending, Exit, History, decide
from ..errors import ManagerError, leaves
from ..models import RestartMode, ServiceConfig
from ..process import detached
from ..process.listening import bind
from ..process.paths import RuntimePaths, reason
from ..supervisor import logs
from ..supervisor.process import Leader
from ..worker.pidfile import PidFile, living
from ..worker.spec import WorkerSpec
from .worker_manager import WorkerHandle, WorkerManager

logger = logging.getLogger(__name__)

_START_S = 30.0  #: until a new worker serves
_RETURN_S = 3.0  #: a worker that lives connects to the next manager sooner than that
_LOOK_S = 0.02
_END_S = 30.0  #: from SIGTERM to SIGKILL: its connections are closed in batches, and each may take a while
_STEADY = ServiceConfig(
    # Not zero, which would not double: a worker that cannot start would be tried ten times a second for ever.
    restart=RestartMode.ALWAYS,
    restart_delay=0.05,
    restart_delay_max=30.0,
    max_restart_count=10**6,
)


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
            await _end(paths, worker, 0)


async def end_left(paths: RuntimePaths) -> int:
    """Ends the workers that a former manager left and that no other one adopted, but not those of terminals.

    Returns how many there were.
    """
    left = [worker for worker in living(paths.workers) if not worker.guest]
    async with trio.open_nursery() as nursery:
        for worker in left:
            nursery.start_soon(_end, paths, worker, _END_S)
    return len(left)


async def _end(paths: RuntimePaths, worker: PidFile, grace_s: float) -> None:
    with suppress(OSError):  # it has just died
        process = Leader(worker.pid)
        if worker in living(paths.workers):  # so the pid is still that worker's
            await process.end(grace_s)
        else:
            process.release()


def _declared(worker: WorkerHandle | None) -> bool:
    return worker is not None and worker.declared


class WorkerSet:
    """`count` workers on one port. `spec` is what they have in common."""

    def __init__(self, spec: WorkerSpec, count: int, *, worker_manager: WorkerManager | None) -> None:
        """Without `worker_manager` they are a terminal's (`WorkerSpec.guest`), and end with this process."""
        self._spec = spec
        self._count = count
        self._worker_manager = worker_manager
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
            except _DidNotStart as words:
                raise ManagerError(f"a gateway worker did not start: {words}") from None
        task_status.started()
        history = History()
        while True:
            begun, served_s = trio.current_time(), None
            try:
                if process is None:
                    process = await self._start(slot)
                begun = trio.current_time()
                exit = await self._attend(process)
                if self._worker_manager is None and exit == Exit(code=0):
                    return  # its manager sent `End`
                what = f"(pid {process.pid}) ended ({exit})"
                served_s = trio.current_time() - begun
            except _DidNotStart as words:
                what = f"did not start ({words})"
            process = None
            ending = Ending(Cause.EXITED, what, ready_for_s=served_s)
            decision = decide(_STEADY, history, ending, now=trio.current_time(), rand=random.random())
            assert isinstance(decision, Again), "it is always tried again"
            history = decision.history
            logger.warning("gateway worker %d %s; starting another in %.1f s", slot, what, decision.delay_s)
            await trio.sleep(decision.delay_s)

    def _adopt(self, worker: WorkerHandle) -> Leader | None:
        try:
            return Leader(worker.pid)
        except OSError:  # it has just died
            return None

    async def _start(self, slot: int) -> Leader:
        """A worker that serves. Raises `_DidNotStart`."""
        lifeline = None if self._lifeline is None else self._lifeline[0]
        spec = evolve(self._spec, worker_id=f"wrk_{token_hex(8)}", slot=slot, lifeline=lifeline)
        if self._worker_manager is not None:
            self._worker_manager.kept.add(spec.worker_id)
        return await _start(spec, spec.log.with_suffix(".err"))

    async def _attend(self, process: Leader) -> Exit:
        """Returns how the process ended. When cancelled, ends it, or leaves it running (`stop`)."""
        exit: Exit | None = None
        try:
            exit = await process.wait_exit()
            return exit
        finally:
            if exit is not None or self._leaving:
                process.release()
            else:
                await process.end(_END_S)

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


class _DidNotStart(Exception):
    """A worker ended or was not ready in time; the message is the last line of its output."""


async def _start(spec: WorkerSpec, output: Path) -> Leader:
    """Returns when it serves. Raises `_DidNotStart`."""
    reading, writing = os.pipe()
    async with trio.lowlevel.FdStream(reading) as ready:
        try:
            process = _spawn(evolve(spec, ready=writing), output)
        except OSError as error:
            raise _DidNotStart(reason(error)) from None
        finally:
            os.close(writing)
        serving, exit = b"", Exit()
        try:
            with trio.move_on_after(_START_S) as patience:
                serving = bytes(await ready.receive_some())
        finally:
            if not serving:
                exit = await process.end(0)
    if not serving:
        said = logs.last_words(output, 0).splitlines()
        silent = f"it was not ready within {_START_S:g} s" if patience.cancelled_caught else str(exit)
        raise _DidNotStart(said[-1] if said else silent)
    return process


def _spawn(spec: WorkerSpec, output: Path) -> Leader:
    """Raises OSError."""
    with ExitStack() as stack:
        out = logs.open_for_append(output)
        stack.callback(os.close, out)
        os.ftruncate(out, 0)
        spec_file = stack.enter_context(open(os.memfd_create("spec"), "w+b"))  # needs no room on a disk
        spec_file.write(to_json(spec).encode())
        spec_file.seek(0)
        popen = detached.start(
            "agentmgr.worker",
            f"{spec.host}:{spec.port}",  # not read by the worker: it is there for `ps`
            stdin=spec_file,
            stdout=out,
            stderr=out,
            inherited=[fd for fd in (spec.ready, spec.lifeline) if fd is not None],
        )
        try:
            process = Leader(popen.pid)
        except OSError:  # no descriptor left for watching it
            popen.kill()
            popen.wait()
            raise
        detached.disown(popen)  # `Leader` reaps it
        return process
