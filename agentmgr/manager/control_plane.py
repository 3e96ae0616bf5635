"""The live parts of one manager, wired."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from attrs import evolve

from ..core import cluster_fields
from ..core.stats import service_stats
from ..core.view import service_view
from ..errors import ConnectionNotFound
from ..models import Event, Instance, InstanceRecord, Service, ServiceSpec, Usage, utc_now
from ..process.ownership import ManagerLock
from ..process.paths import RuntimePaths
from ..settings import Settings
from ..storage.store import Snapshot, Store
from ..supervisor import Supervisor
from .connections import OpenConnections
from .console import Console
from .events import EventLog
from .gateway_access import GatewayAccess
from .hooks import Hooks
from .jobs import Jobs
from .minutes import MinuteLog
from .network_journals import NetworkJournals, check_url
from .on_demand import OnDemand
from .publisher import Publisher
from .recorder import Recorder
from .registry import Registry
from .reloading import Reloads
from .sampling import Sampler
from .scaling import Scaler
from .scheduler import Scheduler
from .sessions import Sessions
from .summaries import Summaries
from .tokens import Tokens
from .worker_manager import WorkerManager

if TYPE_CHECKING:
    from .cluster import JoinedCluster


class ControlPlane:
    """Wires the live parts of one manager, and answers what only several of them know together."""

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        tokens: Tokens,
        lock: ManagerLock,
        nursery: trio.Nursery,
        settings: Settings,
        paths: RuntimePaths,
        *,
        supervises: bool,
        cluster: JoinedCluster | None = None,
    ) -> None:
        self._lock = lock
        self.nursery = nursery
        self.supervises = supervises
        self.cluster = cluster
        self.store = store
        self.tokens = tokens
        self.access = GatewayAccess(tokens)
        self._sessions_url = settings.sessions_url
        self.registry = Registry(
            store,
            snapshot.services,
            snapshot.rules,
            check_fields=self._check_fields,
        )
        self.events = EventLog(store)
        self.network = NetworkJournals(settings.sessions_url, self.registry.services, paths.sessions)
        for record in snapshot.instances:
            if (spec := self.registry.by_id.get(record.service_id)) is not None:
                self.network.runs(record, spec.config)
        self.recorder = Recorder(
            store,
            self.events,
            snapshot.totals,
            changed=lambda: self.publisher.changed(),  # which is made after those that report
            drain=self._drain,
            active=lambda service_id: self.worker_manager.active(service_id),
            jobs=lambda: self.jobs,
            hooks=lambda: self.hooks,
            on_demand=lambda: self.on_demand,
            load_changed=lambda service_id: self.scaler.load_changed(service_id),
            launched=self._launched,
            ended=self.network.ended,
        )
        self.supervisor = Supervisor(
            self.recorder,
            log_dir=paths.logs,
            sessions_dir=paths.sessions,
            sessions_url=settings.sessions_url,
            health_check_interval=settings.health_check_interval,
            fork_server=settings.fork_server,
            preload_max=settings.preload_max,
            launcher=None if cluster is None else cluster.launcher,
        )
        self.jobs = Jobs(store, self.registry, self.supervisor, snapshot.jobs)
        self.hooks = Hooks(self.registry, self.events, lambda: self.sessions, self.supervisor.instances)
        self.scheduler = Scheduler(self.registry, self.supervisor, self.jobs, self.events)
        self.reloads = Reloads(
            self.registry,
            self.supervisor,
            self.events,
            self.hooks,
            ignored=(paths.directory, *paths.of_sqlite),
        )
        self.worker_manager = WorkerManager(
            settings,
            observer=self.recorder,
            access=self.access,
            wake=lambda service_id: self.on_demand.wake(service_id),
            vacated=lambda instance_id: self.on_demand.vacated(instance_id),
            clients_wait=lambda: self.scaler.look_now(),
            node_workers=None if cluster is None else cluster.node_workers,
            credentials=None if cluster is None else paths.cluster,
            gates_changed=lambda: self.publisher.changed(),
        )
        self.gateway = self.worker_manager.gateway
        self.connections = OpenConnections(self.gateway, self.worker_manager)
        self.scaler = Scaler(
            self.registry,
            self.supervisor,
            self.events,
            taken=lambda: self.gateway.lobby.live,
            waiting=self.worker_manager.waiting,
        )
        self.publisher = Publisher(
            self.registry,
            self.supervisor,
            self.worker_manager,
            tokens,
            own_pages=lambda: self.console.origins,
            falling_asleep=lambda: self.on_demand.falling_asleep,
            nodes=frozenset if cluster is None else cluster.nodes_left,
            sessions_url=settings.sessions_url,
            moved=dict if cluster is None else cluster.moves.look,
        )
        self.on_demand = OnDemand(
            self.registry,
            self.supervisor,
            self.publisher,
            self.events,
            connections=self._active,
            unfinished=lambda specs: self.sessions.unfinished(specs),
        )
        self.console = Console(tokens, self.publisher, self.events)
        self.sessions = Sessions(
            paths.sessions,
            self.registry,
            self.supervisor,
            self.publisher,
            self.on_demand,
            self.gateway.dialer,
            nursery,
            nodes=None if cluster is None else cluster.sessions,
            network=self.network,
        )
        self.summaries = Summaries(
            self.registry,
            self.supervisor,
            lambda: self.gateway.lobby.live,
            lambda: self.recorder.touched() | self.jobs.touched(),
            self.jobs.state,
            self.scheduler.next_run,
        )
        self.sampler = Sampler(self)
        self.minute_log = MinuteLog(self)

    # Services

    def _check_fields(self, spec: ServiceSpec) -> None:
        """Raises `InvalidRequest` for what this manager cannot do."""
        if self.cluster is not None:
            self.cluster.check_fields(spec)
        check_url("sessions", self.network.url_of(spec.config))

    def _launched(self, record: InstanceRecord) -> None:
        if (spec := self.registry.by_id.get(record.service_id)) is not None:
            self.network.runs(record, spec.config)

    def view(self, spec: ServiceSpec) -> Service:
        """The service as every interface shows it."""
        instances = [self._with_usage(i) for i in self.supervisor.instances(spec.service_id)]
        return service_view(
            spec,
            instances,
            self._active(instances),
            job=self.jobs.state(spec.service_id),
            next_run_at=self.scheduler.next_run(spec),
            reload_error=self.reloads.error(spec.service_id),
            journal=self.network.shown(spec.config),
            preloaded=self.supervisor.preloaded(spec.service_id),
            remarks=self._remarks(spec, instances),
        )

    def _remarks(self, spec: ServiceSpec, instances: Iterable[Instance]) -> tuple[str, ...]:
        if self.cluster is not None:
            scattered = cluster_fields.scattered(spec, instances, self._sessions_url)
            return self.cluster.remarks(spec) + scattered
        return cluster_fields.ignored(spec.config) if self.supervises else ()

    def views(self) -> list[Service]:
        return [self.view(spec) for spec in self.registry.services()]

    def _with_usage(self, instance: Instance) -> Instance:
        usage = self.latest_usage(instance)
        return instance if usage is None else evolve(instance, usage=usage)

    def latest_usage(self, instance: Instance) -> Usage | None:
        samples = self.supervisor.usage(instance.instance_id) if instance.pid is not None else ()
        return samples[-1] if samples else None

    def usage(self, service_id: str) -> dict[str, tuple[Usage, ...]]:
        """The samples of each of its instances, oldest first."""
        return {
            i.instance_id: self.supervisor.usage(i.instance_id) for i in self.supervisor.instances(service_id)
        }

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now and end by themselves; services keep running."""
        of_the_file, of_storage = self._lock.trouble(), self.store.degraded
        of_cluster = () if self.cluster is None else self.cluster.troubles()
        others = (*of_cluster, *self.network.troubles(), *self.supervisor.troubles())
        return (*filter(None, (of_the_file, of_storage)), *others)

    def stats(self, specs: Iterable[ServiceSpec]) -> dict[str, dict[str, Any]]:
        """What each of these services did ever, and its live connections, by its name."""
        specs = tuple(specs)
        live = self.connections.relayed({spec.service_id for spec in specs})
        return {
            spec.name: service_stats(
                self.view(spec),
                self.recorder.totals(spec.service_id),
                live=live.get(spec.service_id, ()),
                usage=self.usage(spec.service_id),
                now=utc_now(),
            )
            for spec in specs
        }

    async def announce_published(self, kind: str, **detail: str | bool) -> None:
        """Announces a change when the gateway and its workers route by it."""
        self.publisher.changed()
        await self.publisher.published()
        self.events.announce(Event(kind, detail=detail))

    # Connections, of the gateway in this process and of workers

    def _active(self, instances: Iterable[Instance]) -> int:
        """How many these have, those about to open included."""
        return sum(self.gateway.active_connections(i.instance_id) for i in instances)

    def disconnect(self, connection_id: str, *, code: int, reason: str) -> None:
        """Raises `ConnectionNotFound`, and `ValueError` for a code that cannot be sent."""
        try:
            self.gateway.disconnect(connection_id, code=code, reason=reason)
        except ConnectionNotFound:
            self.worker_manager.disconnect(connection_id, code=code, reason=reason)

    async def _drain(self, instance_id: str, timeout_s: float, for_good: bool) -> None:
        began = trio.current_time()
        try:
            await self.publisher.published()  # no new client comes to it from here on
            idle_s, timeout_s = await self.supervisor.drain_terms(instance_id, timeout_s)
            left_s = max(0.0, began + timeout_s - trio.current_time())
            drain = partial(self.gateway.drain, by_itself=idle_s is None)
            async with trio.open_nursery() as nursery:
                for each in (drain, self.worker_manager.drain):
                    nursery.start_soon(
                        partial(each, instance_id, timeout_s=left_s, for_good=for_good, idle_s=idle_s)
                    )
        except trio.Cancelled:  # by force: before the instance tells its clients to come back
            self.gateway.cut(instance_id, for_good=for_good)
            self.worker_manager.cut(instance_id, for_good=for_good)
            raise
