"""A manager's own life: it takes the database, starts what should run, and ends in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Self

import trio
from attrs import evolve

from ..errors import AgentManagerError, ManagerNotRunning, WrongState
from ..models import (
    DesiredStatus,
    InstanceRecord,
    ServiceSpec,
    utc_now,
)
from ..process.companion import Companion
from ..process.control_socket import control_listener, keep_bound
from ..process.ownership import ManagerLock
from ..process.paths import RuntimePaths
from ..settings import Settings
from ..storage.sqlite import check, open_store
from ..storage.store import Snapshot, Store
from ..supervisor import system
from .control_plane import ControlPlane
from .gateway_access import GatewayAccess
from .system_run import SystemRun
from .tokens import Tokens
from .worker_set import WorkerSet, await_returning

logger = logging.getLogger(__name__)

#: A command that works on the database without a manager holds the lock for some milliseconds.
_PATIENCE_S = 1.0

_LOOK_S = 5.0  #: between looks at whether the database file is still there


class ManagerLife:
    """How `AgentManager` starts, runs and ends."""

    def __init__(
        self,
        db_path: str | os.PathLike[str] = "agent_manager.db",
        *,
        settings: Settings | None = None,
        supervise: bool = True,
        in_background: bool = False,
    ) -> None:
        self.settings = evolve(settings or Settings(), db_path=os.fspath(db_path))
        self.paths = RuntimePaths.of(self.settings.db_path)
        self._in_background = in_background  # shown by `get_info`: a command started it, not a person
        self._supervise = supervise
        self._lock = ManagerLock(self.paths)
        self._used = False
        self._plane: ControlPlane | None = None
        self._started_at = utc_now()
        self._listeners: list[dict[str, str | int]] = []
        self._leaving: set[str] = set()  # ids of services that are being unregistered
        self._shutdown_requested = trio.Event()
        self._hurried = trio.Event()
        self._killing = trio.Event()
        self._leave_running = False
        self._worker_sets: set[WorkerSet] = set()
        self._companion = Companion()
        self._system_run: SystemRun | None = None
        self._tokens: Tokens | None = None

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Manage until cancelled or asked to shut down; then stop every instance, in order.

        It counts as started when the instances that a former manager left are adopted.
        """
        if self._used:
            raise WrongState("this manager has run already; make another one")
        self._used = True
        if self._supervise:
            system.check()
        if not self.paths.directory.exists():  # nothing is put beside a file that is not ours to use
            await check(self.paths.database)
        lock = self._lock
        await lock.acquire_within(_PATIENCE_S)
        try:
            # Before SQLite opens it: beside a hard link to what another manager has open it would put a
            # second write-ahead log, and both would be merged into one file.
            if self.paths.database.is_file():
                lock.hold_database()
            async with open_store(self.paths.database) as store:
                lock.hold_database()  # it may have been made just now
                self.paths.check()  # and perhaps by another user, after the first look
                self._tokens = await Tokens.load(store)
                await self._run_on(store, await store.load(), GatewayAccess(self._tokens), task_status)
        finally:
            lock.release()

    async def _run_on(
        self,
        store: Store,
        snapshot: Snapshot,
        access: GatewayAccess,
        task_status: trio.TaskStatus[Self],
    ) -> None:
        # Shielded in a task of its own: when `run` is cancelled, the supervisor must still be there to stop
        # what it started, and the gateway to get its last table. It is cancelled below, when that is done.
        machinery, talking = trio.CancelScope(shield=True), trio.CancelScope(shield=True)

        async def run_machinery(*, task_status: trio.TaskStatus[None]) -> None:
            with machinery:
                async with trio.open_nursery() as inner:
                    inner.start_soon(plane.keep_publishing)
                    inner.start_soon(plane.figures.watch_loop)
                    inner.start_soon(self._watch_database)
                    if self._supervise:
                        adopt = _by_service(snapshot.services, snapshot.instances)
                        await inner.start(partial(plane.supervisor.run, adopt=adopt))
                    task_status.started()

        async def talk_with_workers(*, task_status: trio.TaskStatus[None]) -> None:
            with talking, control_listener(self.paths.worker_socket) as listener:
                async with trio.open_nursery() as inner:
                    inner.start_soon(plane.worker_manager.serve, listener)
                    inner.start_soon(plane.worker_manager.keep_reporting_seats)
                    again = partial(keep_bound, make_directory=self.paths.create)
                    inner.start_soon(again, self.paths.worker_socket, plane.worker_manager.serve)
                    await await_returning(plane.worker_manager, self.paths)
                    plane.worker_manager.resume()
                    task_status.started()

        async with trio.open_nursery() as nursery:
            plane = ControlPlane(
                store,
                snapshot,
                nursery,
                log_dir=self.paths.logs,
                settings=self.settings,
                access=access,
            )
            try:
                await nursery.start(run_machinery)
                if self._supervise:
                    await _start_what_should_run(plane)
                plane.changed()
                await plane.published()
                if self._supervise:
                    await nursery.start(talk_with_workers)
                self._plane = plane
                self._started_at = utc_now()
                task_status.started(self)
                await self._shutdown_requested.wait()
            finally:
                try:
                    # As long as the services' own drain and stop timeouts allow; `hurry` cuts it short.
                    with trio.CancelScope(shield=True):
                        if self._supervise:
                            await self._end_services(plane)
                finally:
                    self._plane = None
                    talking.cancel()
                    machinery.cancel()
                    nursery.cancel_scope.cancel()

    async def _end_services(self, plane: ControlPlane) -> None:
        plane.ending = not self._leave_running
        async with trio.open_nursery() as nursery:

            async def hurry(requested: trio.Event, *, kill: bool) -> None:
                await requested.wait()
                await plane.supervisor.shutdown(force=True, kill=kill)

            nursery.start_soon(partial(hurry, self._hurried, kill=False))
            nursery.start_soon(partial(hurry, self._killing, kill=True))
            # First, while workers serve on: they drain their sessions as the gateway of this process does.
            await plane.supervisor.shutdown(leave_running=self._leave_running)
            self._stop_workers()
            if not self._leave_running:
                with trio.CancelScope() as farewell:
                    nursery.start_soon(_cancel_at, self._hurried, farewell)
                    await plane.worker_manager.end_all()
            nursery.cancel_scope.cancel()

    async def _watch_database(self) -> None:
        """Says in the log when the file is taken away; until cancelled."""
        known: str | None = None
        while True:
            await trio.sleep(_LOOK_S)
            trouble = self._lock.trouble()
            if trouble is not None and trouble != known:
                logger.error(trouble)
            known = trouble

    def request_shutdown(self, *, leave_running: bool = False) -> None:
        """Ask `run` to end; with `leave_running` the instances serve on, for the next manager to adopt."""
        self._leave_running = leave_running
        self._shutdown_requested.set()
        if leave_running:  # at once: a cancel of `serve_proxy` that follows must not end them
            self._stop_workers()

    def _stop_workers(self) -> None:
        for workers in tuple(self._worker_sets):
            workers.stop(leave=self._leave_running)

    def hurry(self, *, kill: bool = False) -> None:
        """While it ends: wait for no more sessions; and with `kill`, for no process to end by itself."""
        self._hurried.set()
        if kill:
            self._killing.set()

    async def wait_shutdown_requested(self) -> None:
        """Returns when `request_shutdown` was called."""
        await self._shutdown_requested.wait()

    async def __aenter__(self) -> Self:
        await self._companion.begin(self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.request_shutdown(leave_running=self._leave_running)
        await self._companion.end(kind, error, trace)

    async def start(self) -> None:
        """Manage in the background of this trio run, without a nursery around it."""
        if self._system_run is not None:
            raise WrongState("this manager was started already")
        system_run = SystemRun()
        await system_run.start(self.run)
        self._system_run = system_run

    async def stop(self) -> None:
        """End what `start` began; returns when every instance has stopped."""
        system_run, self._system_run = self._system_run, None
        if system_run is not None:
            await system_run.stop()

    def _live(self) -> ControlPlane:
        if self._plane is None:
            raise ManagerNotRunning(
                "this manager is ending, or was never started (`async with AgentManager(...)`)"
            )
        return self._plane

    def _supervising(self) -> ControlPlane:
        if not self._supervise:
            raise ManagerNotRunning("no manager runs on this database; `agentmgr daemon` starts one")
        if self._shutdown_requested.is_set():  # said before anything is written that the next manager reads
            raise ManagerNotRunning("this manager is shutting down; try again when it has ended")
        return self._live()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _start_what_should_run(plane: ControlPlane) -> None:
    for spec in plane.registry.services():
        if spec.desired_status is DesiredStatus.RUNNING:
            try:
                await plane.supervisor.start(spec, wait=False)
            except AgentManagerError as error:  # one service's trouble must not keep the others down
                logger.error("service %s was not started: %s", spec.name, error)


def _by_service(
    services: Iterable[ServiceSpec], records: Iterable[InstanceRecord]
) -> list[tuple[ServiceSpec, list[InstanceRecord]]]:
    found: dict[str, list[InstanceRecord]] = {}
    for record in records:
        found.setdefault(record.service_id, []).append(record)
    return [(spec, found.get(spec.service_id, [])) for spec in services]
