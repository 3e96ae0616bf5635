"""The database, where no manager runs: `OfflineManager` to look at it, `LocalManager` to write to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio

from ..codec import to_plain
from ..core import lookup, schedule, stats, view
from ..core.conditions import pattern
from ..core.request import ClientRequest
from ..errors import InvalidRequest
from ..models import (
    Connection,
    DesiredStatus,
    Event,
    Instance,
    InstanceEnd,
    InstanceRecord,
    RoutingRule,
    Service,
    ServiceSpec,
    ServiceStatus,
    ServiceTotals,
    Token,
    TokenPolicy,
    utc_now,
)
from ..process.paths import RuntimePaths
from ..process.zones import zone
from ..settings import load_settings
from ..storage.sqlite import open_store
from ..storage.store import Snapshot, Store
from ..supervisor import logs
from ..supervisor.belonging import lives, strangers
from ..supervisor.log_file import LogFile
from ..supervisor.log_source import Selection
from ..supervisor.tail import log_label, show
from .manager_interface import ReadsSessions

if TYPE_CHECKING:
    from ..manager import AgentManager

P = ParamSpec("P")
T = TypeVar("T")


class OfflineManager:
    """A `ReadsManager` that answers from a snapshot."""

    def __init__(self, store: Store, snapshot: Snapshot, paths: RuntimePaths) -> None:
        self._store = store
        self._snapshot = snapshot
        self.instances = snapshot.instances  #: as they are recorded
        self._paths = paths
        self.strangers = strangers(snapshot.instances, paths.logs)
        others = {stranger.record.instance_id for stranger in self.strangers}
        self._node_names = {node.node_id: node.name for node in snapshot.nodes}
        self._running = [  # one on another node as far as is known here
            record
            for record in sorted(snapshot.instances, key=lambda record: record.slot)
            if record.instance_id not in others and (record.node_id or lives(record))
        ]
        self._services = [self._view(spec) for spec in sorted(snapshot.services, key=lambda spec: spec.name)]

    def _view(self, spec: ServiceSpec) -> Service:
        job = self._snapshot.jobs.get(spec.service_id)
        next_run_at = schedule.next_run(spec, job, utc_now(), zone)
        return view.service_view(spec, self._instances(spec), 0, job=job, next_run_at=next_run_at)

    def _instances(self, spec: ServiceSpec) -> list[Instance]:
        running = [self._seen(record) for record in self._running if record.service_id == spec.service_id]
        state = self._snapshot.jobs.get(spec.service_id)
        wanted = spec.desired_status is DesiredStatus.RUNNING
        if running or state is None or not (wanted and spec.config.is_job and state.completed):
            return running
        return [Instance(f"{spec.name}/0", spec.service_id, 0, ServiceStatus.COMPLETED)]

    def _seen(self, record: InstanceRecord) -> Instance:
        return Instance(
            instance_id=record.instance_id,
            service_id=record.service_id,
            slot=record.slot,
            status=ServiceStatus.RUNNING,  # as far as can be seen from outside
            node_id=record.node_id,
            node=self._node_names.get(record.node_id, record.node_id),
            pid=record.pid,
            host=record.host,
            port=record.port,
            spec_version=record.spec_version,
            started_at=record.started_at,
        )

    @property
    def unsupervised(self) -> int:
        """How many instances run without a manager."""
        return len(self._running)

    @property
    def unserved(self) -> int:
        """How many services should run, now or when a client comes, and nothing of them does."""
        return sum(service.is_offered and not service.instances for service in self._services)

    @property
    def sessions(self) -> ReadsSessions:
        from ..manager.network_journals import NetworkJournals
        from ..manager.stored_sessions import StoredSessions  # with all of the manager: 0.1 s

        directory, url = self._paths.sessions, load_settings().sessions_url

        def services() -> Iterable[ServiceSpec]:
            return self._snapshot.services

        return StoredSessions(directory, services, network=NetworkJournals(url, services, directory))

    async def get_service(self, ref: str) -> Service:
        return lookup.service(self._services, ref)

    async def list_services(
        self, *, status: ServiceStatus | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]:
        return view.matching(self._services, status=status, tags=tags, name=name)

    async def get_environments(self) -> dict[str, dict[str, str]]:
        return {spec.name: dict(spec.config.env) for spec in self._snapshot.services}

    async def get_hooks(self) -> dict[str, str]:
        services = self._snapshot.services
        return {spec.name: spec.config.on_failure for spec in services if spec.config.on_failure is not None}

    async def get_digests(self) -> dict[str, Sequence[str]]:
        names = {spec.service_id: spec.name for spec in self._snapshot.services}
        return {names[record.service_id]: [record.digest] for record in self._running}

    async def get_service_stats(self, ref: str) -> dict[str, Any]:
        service = await self.get_service(ref)
        totals = self._snapshot.totals.get(service.service_id, ServiceTotals())
        return stats.service_stats(service, totals, now=utc_now())

    async def get_ends(self, ref: str, *, limit: int = 50) -> tuple[InstanceEnd, ...]:
        return await self._store.ends((await self.get_service(ref)).service_id, limit=limit)

    async def get_system_stats(self) -> dict[str, Any]:
        return stats.system_stats(self._services, {})

    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        return await self._store.events(after=after, limit=limit)

    @asynccontextmanager
    async def read_logs(
        self,
        ref: str | Sequence[str],
        *,
        tail: int | None = None,
        follow: bool = False,
        instance: int | None = None,
        since: datetime | None = None,
        grep: str | None = None,
        timestamps: bool = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        several = not isinstance(ref, str)
        sources = {}
        for name in [ref] if isinstance(ref, str) else ref:
            service = await self.get_service(name)
            count = service.config.instance_range.most
            if instance is not None and not 0 <= instance < count and not several:
                raise InvalidRequest(f"instance must be from 0 to {count - 1}")
            for slot in range(count):
                if instance in (None, slot):
                    label = log_label(service.name, slot, count) if several else str(slot)
                    sources[label] = LogFile(logs.path(self._paths.logs, service.name, slot))
        if grep is not None:
            pattern(grep, True, "grep")
        wanted = Selection(100 if tail is None and since is None else tail, since, grep, timestamps)
        send, receive = trio.open_memory_channel[bytes](0)

        async def produce() -> None:
            async with send:
                await show(sources, send.send, wanted, following=follow)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            yield receive
            nursery.cancel_scope.cancel()

    async def list_routing_rules(self) -> list[RoutingRule]:
        return list(lookup.in_order(self._snapshot.rules))

    async def test_routing(self, *, path: str, client_ip: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """As if every service that is registered were running: its instances are called NAME/0 and so on."""
        from ..proxy import Gateway  # the one decider of this; the other commands need not pay for it

        specs = self._snapshot.services
        supposed = [
            _supposed(spec, slot) for spec in specs for slot in range(spec.config.instance_range.least_awake)
        ]
        gateway = Gateway(view.routing_table(specs, self._snapshot.rules, supposed))
        decision = gateway.route(ClientRequest(path=path, client_ip=client_ip, headers=headers))
        return dict(to_plain(decision))

    async def list_tokens(self) -> tuple[Token, ...]:
        return await self._store.tokens()

    async def get_token_policy(self) -> TokenPolicy:
        return await self._store.token_policy()

    async def list_connections(self) -> tuple[Connection, ...]:
        return ()


class LocalManager:
    """The `ManagerInterface` of an `AgentManager` in this process."""

    def __init__(self, manager: AgentManager) -> None:
        self.get_service = _awaited(manager.get_service)
        self.list_services = _awaited(manager.list_services)
        self.list_tokens = _awaited(manager.list_tokens)
        self.get_token_policy = _awaited(manager.get_token_policy)
        self.register_service = manager.register_service
        self.update_service = manager.update_service
        self.unregister_service = manager.unregister_service
        self.start_service = manager.start_service
        self.stop_service = manager.stop_service
        self.restart_service = manager.restart_service
        self.run_service_now = manager.run_service_now
        self.scale_service = manager.scale_service
        self.create_routing_rule = manager.create_routing_rule
        self.update_routing_rule = manager.update_routing_rule
        self.delete_routing_rule = manager.delete_routing_rule
        self.create_token = manager.create_token
        self.delete_token = manager.delete_token
        self.require_tokens = manager.require_tokens


def _awaited(answer: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    async def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        return answer(*args, **kwargs)

    return ask


@asynccontextmanager
async def offline(paths: RuntimePaths) -> AsyncIterator[OfflineManager]:
    """Raises a `StorageError` where the database cannot be read; one that is not there is empty."""
    async with open_store(paths.database, read_only=True) as store:
        yield OfflineManager(store, await store.load(), paths)


def _supposed(spec: ServiceSpec, slot: int) -> Instance:
    return Instance(
        instance_id=f"{spec.name}/{slot}",
        service_id=spec.service_id,
        slot=slot,
        status=ServiceStatus.RUNNING,
        host=spec.host,
        port=spec.port,
    )
