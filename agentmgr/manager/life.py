"""A manager's own life: it takes the database, starts what should run, and ends in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..errors import AgentManagerError, ManagerError, ManagerReplaced, WrongState
from ..generation import replaced
from ..models import DesiredStatus, InstanceRecord, ServiceSpec, utc_now
from ..process.control_socket import control_listener, keep_bound
from ..process.ownership import ManagerLock
from ..process.paths import RuntimePaths
from ..settings import ClusterMode, Settings
from ..storage.sqlite import check, open_store
from ..storage.store import Snapshot, Store
from ..supervisor import procfs, system
from .control_plane import ControlPlane
from .listeners import ManagerListeners
from .network_journals import check_url
from .tokens import Tokens
from .worker_set import await_returning

if TYPE_CHECKING:
    from .cluster import JoinedCluster

logger = logging.getLogger(__name__)

#: A command that works on the database without a manager holds the lock for some milliseconds.
_PATIENCE_S = 1.0

_LOOK_S = 5.0  #: between looks at whether the database file is still there


class ManagerLife:
    """Runs the `ControlPlane` of one database, once, and ends it in order."""

    def __init__(
        self, settings: Settings, paths: RuntimePaths, listeners: ManagerListeners, *, supervises: bool
    ) -> None:
        self.supervises = supervises
        self.lock = ManagerLock(paths)
        self.plane: ControlPlane | None = None  #: while it manages
        self.tokens: Tokens | None = None  #: once the database is open; for as long as anything asks
        self.started_at = utc_now()
        self.end_requested = trio.Event()
        self._settings = settings
        self._paths = paths
        self._listeners = listeners
        self._used = False
        self._hurried = trio.Event()
        self._killing = trio.Event()
        self._leave_running = False

    async def run(self, started: Callable[[], None]) -> None:
        """Manages until cancelled or asked to end; then stops every instance, in order.

        Calls `started` when the instances that a former manager left are adopted.
        """
        if self._used:
            raise WrongState("this manager has run already; make another one")
        self._used = True
        if self.supervises:
            system.check()
        check_url("sessions_url", self._settings.sessions_url)
        if not self._paths.directory.exists():  # nothing is put beside a file that is not ours to use
            await check(self._paths.database)
        lock = self.lock
        await lock.acquire_within(_PATIENCE_S)
        try:
            # Before SQLite opens it: beside a hard link to what another manager has open it would put a
            # second write-ahead log, and both would be merged into one file.
            if self._paths.database.is_file():
                lock.hold_database()
            async with open_store(self._paths.database) as store:
                lock.hold_database()  # it may have been made just now
                self._paths.check()  # and perhaps by another user, after the first look
                self.tokens = await Tokens.load(store)
                await self._run_on(store, self.tokens, started)
        finally:
            lock.release()

    async def _run_on(self, store: Store, tokens: Tokens, started: Callable[[], None]) -> None:
        snapshot = await store.load()
        if self.supervises and self._settings.cluster is not ClusterMode.OFF:
            from .cluster import JoinedCluster  # here: one machine does not pay for it

            opened = JoinedCluster.opened(self._settings, self._paths, store, snapshot, self._listeners)
            async with opened as cluster:
                await self._run_with(cluster, store, snapshot, tokens, started)
            return
        if self.supervises:
            _check_nodes(snapshot)
        await self._run_with(None, store, snapshot, tokens, started)

    async def _run_with(
        self,
        cluster: JoinedCluster | None,
        store: Store,
        snapshot: Snapshot,
        tokens: Tokens,
        started: Callable[[], None],
    ) -> None:
        # Shielded in a task of its own: when `run` is cancelled, the supervisor must still be there to stop
        # what it started, and the gateway to get its last table. It is cancelled below, when that is done.
        machinery, talking = trio.CancelScope(shield=True), trio.CancelScope(shield=True)

        async with trio.open_nursery() as nursery:
            plane = ControlPlane(
                store, snapshot, tokens, self.lock, nursery, self._settings, self._paths,
                supervises=self.supervises, cluster=cluster,
            )  # fmt: skip
            try:
                await nursery.start(self._run_machinery, plane, snapshot, machinery)
                if cluster is not None:
                    nursery.start_soon(self._end_if_replaced, cluster)
                if self.supervises:
                    await _start_what_should_run(plane)
                plane.publisher.changed()
                await plane.publisher.published()
                if self.supervises:
                    await nursery.start(self._talk_with_workers, plane, talking)
                self.plane = plane
                self.started_at = utc_now()
                started()
                await self.end_requested.wait()
            finally:
                try:
                    # As long as the services' own drain and stop timeouts allow; `hurry` cuts it short.
                    with trio.CancelScope(shield=True):
                        if self.supervises:
                            await self._end_services(plane)
                finally:
                    self.plane = None
                    talking.cancel()
                    machinery.cancel()
                    nursery.cancel_scope.cancel()
        if cluster is not None and cluster.newer is not None:
            raise ManagerReplaced(replaced(cluster.newer))

    async def _end_if_replaced(self, cluster: JoinedCluster) -> None:
        await cluster.replaced.wait()
        self.end()

    async def _run_machinery(
        self,
        plane: ControlPlane,
        snapshot: Snapshot,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.publisher.run)
                nursery.start_soon(plane.recorder.measure_lag)
                nursery.start_soon(plane.sampler.run)
                nursery.start_soon(plane.minute_log.run)
                nursery.start_soon(plane.jobs.run)
                await nursery.start(plane.network.run)
                nursery.start_soon(self._watch_database)
                if plane.cluster is not None:
                    await nursery.start(plane.cluster.run, plane)
                if self.supervises:
                    nursery.start_soon(plane.sessions.keep_pruned, plane.events.announce)
                    adopt = _by_service(snapshot.services, snapshot.instances)
                    run = partial(plane.supervisor.run, adopt=adopt, completed=plane.jobs.completed())
                    await nursery.start(run)
                    plane.jobs.find_lost(snapshot.instances, boot_id=procfs.boot_id())
                    nursery.start_soon(plane.scheduler.run)
                    nursery.start_soon(plane.reloads.run)
                    nursery.start_soon(plane.hooks.run)
                    nursery.start_soon(plane.on_demand.run)
                    nursery.start_soon(plane.scaler.run)
                    if plane.cluster is not None:
                        nursery.start_soon(plane.cluster.move_sessions)
                task_status.started()

    async def _talk_with_workers(
        self, plane: ControlPlane, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """Counts as started when every worker of a former manager has declared its seats.

        Those on nodes may take longer; until they have, no seat is granted at an instance with a limit.
        """
        workers, path = plane.worker_manager, self._paths.worker_socket
        with scope, control_listener(path) as listener:
            async with trio.open_nursery() as nursery:
                await nursery.start(workers.run)
                if plane.cluster is not None:
                    plane.cluster.let_workers_in()
                nursery.start_soon(workers.serve, listener)
                nursery.start_soon(
                    partial(keep_bound, make_directory=self._paths.create), path, workers.serve
                )
                await await_returning(workers, self._paths)
                task_status.started()
                await workers.await_nodes()
                workers.resume()

    async def _end_services(self, plane: ControlPlane) -> None:
        async with trio.open_nursery() as nursery:

            async def hurry(requested: trio.Event, *, kill: bool) -> None:
                await requested.wait()
                await plane.supervisor.shutdown(force=True, kill=kill)

            nursery.start_soon(partial(hurry, self._hurried, kill=False))
            nursery.start_soon(partial(hurry, self._killing, kill=True))
            # First, while workers serve on: they drain their connections as the gateway of this process does.
            is_replaced = plane.cluster is not None and plane.cluster.newer is not None
            await plane.supervisor.shutdown(leave_running=self._leave_running, leave_nodes=is_replaced)
            self._listeners.stop_workers(leave=self._leave_running)
            if plane.cluster is not None:
                plane.cluster.gateways.stop(leave=self._leave_running or is_replaced)
            if not self._leave_running:
                with trio.CancelScope() as farewell:
                    nursery.start_soon(_cancel_at, self._hurried, farewell)
                    await plane.worker_manager.end_all()
            with trio.CancelScope() as last_words:
                nursery.start_soon(_cancel_at, self._hurried, last_words)
                await plane.hooks.end()
            nursery.cancel_scope.cancel()

    async def _watch_database(self) -> None:
        """Says in the log when the file is taken away; until cancelled."""
        known: str | None = None
        while True:
            await trio.sleep(_LOOK_S)
            trouble = self.lock.trouble()
            if trouble is not None and trouble != known:
                logger.error(trouble)
            known = trouble

    def end(self, *, leave_running: bool = False) -> None:
        """Has `run` end; with `leave_running` instances and workers go on, for the next manager to adopt."""
        self._leave_running = leave_running
        self.end_requested.set()
        if leave_running:  # at once: a cancel of `serve_proxy` that follows must not end them
            self._listeners.stop_workers(leave=True)
            if self.plane is not None and self.plane.cluster is not None:
                self.plane.cluster.gateways.stop(leave=True)

    def hurry(self, *, kill: bool = False) -> None:
        """While it ends: waits for no connection any more; with `kill`, for no process either."""
        self._hurried.set()
        if kill:
            self._killing.set()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _start_what_should_run(plane: ControlPlane) -> None:
    over = {spec.service_id for spec in plane.jobs.over()}
    for spec in plane.registry.services():
        if (
            spec.desired_status is DesiredStatus.RUNNING
            and spec.config.schedule is None
            and spec.service_id not in over
            and not plane.on_demand.is_asleep(spec)
        ):
            try:
                awake = await plane.on_demand.wake_needed(spec)
                await plane.supervisor.start(awake, wait=False)
            except AgentManagerError as error:  # one service's trouble must not keep the others down
                logger.error("service %s was not started: %s", spec.name, error)


def _check_nodes(snapshot: Snapshot) -> None:
    """Raises `ManagerError` where instances run on nodes that a manager without a cluster cannot ask.

    It could neither adopt them, nor take them for gone, nor start others in their place.
    """
    services = {record.service_id for record in snapshot.instances if record.node_id}
    if services:
        names = ", ".join(sorted(spec.name for spec in snapshot.services if spec.service_id in services))
        raise ManagerError(
            f"instances of this database run on other machines ({names}): start the manager with "
            "--cluster joined or --cluster ray, as the one before was"
        )


def _by_service(
    services: Iterable[ServiceSpec], records: Iterable[InstanceRecord]
) -> list[tuple[ServiceSpec, list[InstanceRecord]]]:
    found: dict[str, list[InstanceRecord]] = {}
    for record in records:
        found.setdefault(record.service_id, []).append(record)
    return [(spec, found.get(spec.service_id, [])) for spec in services]
