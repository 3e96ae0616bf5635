"""What a registration and its instances look like together: to a person, and to the gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from types import MappingProxyType
from typing import Any

from attrs import evolve

from ..models import (
    DesiredStatus,
    HealthStatus,
    Instance,
    JobState,
    RoutingRule,
    Service,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
)
from . import scaling, schedule
from .hosts import authority
from .on_demand import is_asleep
from .routing import Backend, BackendState, RoutingTable
from .secrets import shown, shown_hook

#: The service is as well as its best instance: while one serves, clients are served.
_BEST_FIRST = (
    ServiceStatus.RUNNING,
    ServiceStatus.UNHEALTHY,
    ServiceStatus.DRAINING,
    ServiceStatus.STARTING,
    ServiceStatus.BACKOFF,
    ServiceStatus.STOPPING,
    ServiceStatus.ERROR,
    ServiceStatus.COMPLETED,
    ServiceStatus.SCHEDULED,
    ServiceStatus.ASLEEP,
    ServiceStatus.STOPPED,
)
_DOWN = (
    ServiceStatus.STOPPED,
    ServiceStatus.BACKOFF,
    ServiceStatus.ERROR,
    ServiceStatus.COMPLETED,
)  #: nothing of it is up
_WORST_FIRST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.UNKNOWN, HealthStatus.HEALTHY)

_BACKEND_STATES = {
    ServiceStatus.RUNNING: BackendState.ROUTABLE,
    ServiceStatus.STARTING: BackendState.COMING,
    ServiceStatus.BACKOFF: BackendState.COMING,
    # Either it recovers or it is restarted: a new client is better off waiting than refused.
    ServiceStatus.UNHEALTHY: BackendState.SUSPECT,
    ServiceStatus.DRAINING: BackendState.DRAINING,
    ServiceStatus.STOPPING: BackendState.DOWN,
    ServiceStatus.STOPPED: BackendState.DOWN,
    ServiceStatus.ERROR: BackendState.DOWN,
    ServiceStatus.COMPLETED: BackendState.DOWN,
    ServiceStatus.SCHEDULED: BackendState.DOWN,
    ServiceStatus.ASLEEP: BackendState.DOWN,
}


_BEING_STOPPED = frozenset({ServiceStatus.STOPPING, ServiceStatus.STOPPED})


def overall_status(instances: Iterable[Instance]) -> ServiceStatus:
    """The status of the best instance; `stopped` when there is none."""
    return min((i.status for i in instances), key=_BEST_FIRST.index, default=ServiceStatus.STOPPED)


def overall_health(instances: Iterable[Instance]) -> HealthStatus:
    """Healthy when all are, degraded when only some are, else that of the worst."""
    found = {instance.health for instance in instances}
    if HealthStatus.HEALTHY in found and len(found) > 1:
        return HealthStatus.DEGRADED
    return min(found, key=_WORST_FIRST.index, default=HealthStatus.UNKNOWN)


def started_at(instances: Iterable[Instance]) -> datetime | None:
    """Since when it runs: when the oldest instance that is up was launched."""
    return min((i.started_at for i in instances if i.started_at and i.status not in _DOWN), default=None)


def service_view(
    spec: ServiceSpec,
    instances: Sequence[Instance],
    active_sessions: int,
    *,
    job: JobState | None = None,
    next_run_at: datetime | None = None,
    reload_error: str | None = None,
    journal: str | None = None,
    preloaded: str | None = None,
    remarks: tuple[str, ...] = (),
) -> Service:
    """One service as every interface shows it. `instances` are its own, in the order of their slots."""
    config = spec.config
    status, why = schedule.status(spec, overall_status(instances), job)
    serves = [i for i in instances if i.status is ServiceStatus.RUNNING and i.port and i.serves]
    serving = serves[0] if serves else None
    here = next((i for i in serves if not i.node_id), None)  # one of another node is behind a gateway's gate
    return Service(
        service_id=spec.service_id,
        name=spec.name,
        description=spec.description,
        agent_factory_path=config.agent_factory_path,
        command=config.command,
        host=spec.host,
        port=spec.port or (serving.port if serving else None),
        endpoint=_endpoint(spec, here) if here else None,
        tags=spec.tags,
        status=status,
        desired_status=spec.desired_status,
        health=overall_health(instances),
        error_message=next((i.error_message for i in instances if i.error_message), why),
        version=spec.version,
        created_at=spec.created_at,
        updated_at=spec.updated_at,
        started_at=started_at(instances),
        restart_count=sum(i.restart_count for i in instances),
        next_restart_at=min((i.next_restart_at for i in instances if i.next_restart_at), default=None),
        active_sessions=active_sessions,
        config=_shown(config),
        instances=tuple(instances),
        wanted_instances=scaling.wanted(config, instances),
        port_is_fixed=spec.port is not None,
        last_run=None if job is None else job.last,
        next_run_at=next_run_at,
        reload_error=reload_error,
        journal=journal,
        preloaded=preloaded,
        remarks=remarks,
    )


def _shown(config: ServiceConfig) -> ServiceConfig:
    if not config.env and config.on_failure is None:
        return config  # to make one validates it all
    env = shown(config.env, config.env_public)
    return evolve(config, env=env, on_failure=shown_hook(config.on_failure))


def matching(
    services: Iterable[Service],
    *,
    status: ServiceStatus | str | None = None,
    tags: Iterable[str] = (),
    name: str | None = None,
) -> list[Service]:
    """Those with this status, any of these tags, this text in their name, as far as these are given."""
    wanted = frozenset(tags)
    return [
        service
        for service in services
        if (status is None or service.status == status)
        and (not wanted or wanted & service.tags)
        and (name is None or name in service.name)
    ]


def _endpoint(spec: ServiceSpec, instance: Instance) -> str:
    scheme = "http" if spec.config.speaks_http else "ws"
    return f"{scheme}://{authority(instance.host, instance.port or 0)}"


class Backends:
    """Makes those of one table after another. What has not changed since the table before is used again: with
    ten thousand services, to make them is most of what a table takes.
    """

    def __init__(self, sessions_url: str | None = None) -> None:
        """`sessions_url`: of the manager's network journal, if it has one."""
        self._sessions_url = sessions_url
        self._before: dict[str, tuple[tuple[Any, ...], Backend]] = {}
        self._made: dict[str, tuple[tuple[Any, ...], Backend]] = {}

    def next_table(self) -> None:
        self._before, self._made = self._made, {}

    def of(
        self,
        spec: ServiceSpec,
        instance_id: str,
        state: BackendState,
        host: str,
        port: int,
        token: str = "",
        node_id: str = "",
    ) -> Backend:
        facts = (spec, state, host, port, token, node_id)
        kept = self._before.get(instance_id)
        if kept is None or kept[0] != facts:
            kept = facts, _backend(spec, instance_id, state, host, port, token, node_id, self._sessions_url)
        self._made[instance_id] = kept
        return kept[1]


def routing_table(
    specs: Iterable[ServiceSpec],
    rules: Iterable[RoutingRule],
    instances: Iterable[Instance],
    tokens: Mapping[str, str] = MappingProxyType({}),
    *,
    falling_asleep: Set[str] = frozenset(),
    restarting: Set[str] = frozenset(),
    kept_ids: Mapping[str, str] = MappingProxyType({}),
    backends: Backends | None = None,
) -> RoutingTable:
    """The table that the gateway routes by: its backends in the order of their services' names, and of each
    service in that of `instances`. It has none of services that were unregistered.

    `tokens`: those of hosted agents, by instance id. `falling_asleep`: the ids of services whose instances
    take no new client: one that comes has them stay, or start again. `restarting`: the ids of services whose
    instances, where they are being stopped, are followed by others, which clients wait for. `kept_ids`: by
    service id, the instance id that a service had before it fell asleep. `backends`: has those of the table
    before.
    """
    made = Backends() if backends is None else backends
    made.next_table()
    by_id = {spec.service_id: spec for spec in specs}
    found = []
    of_service: dict[str, list[ServiceStatus]] = {}
    for instance in instances:
        if (spec := by_id.get(instance.service_id)) is None:
            continue
        of_service.setdefault(spec.service_id, []).append(instance.status)
        state = _backend_state(instance)
        if spec.service_id in falling_asleep and spec.desired_status is DesiredStatus.RUNNING:
            state = BackendState.ASLEEP
        elif spec.service_id in restarting and instance.status in _BEING_STOPPED:
            state = BackendState.COMING if spec.desired_status is DesiredStatus.RUNNING else state
        token = tokens.get(instance.instance_id, "")
        found.append(
            made.of(
                spec,
                instance.instance_id,
                state,
                instance.host,
                instance.port or 0,
                token,
                instance.node_id,
            )
        )
    for spec in by_id.values():
        statuses = of_service.get(spec.service_id, ())
        if is_asleep(spec, statuses) and not (statuses and spec.service_id in falling_asleep):
            known_as = kept_ids.get(spec.service_id, spec.service_id)
            found.append(made.of(spec, known_as, BackendState.ASLEEP, spec.host, spec.port or 0))
    found.sort(key=lambda backend: backend.service_name)  # stable: of each service as the supervisor has them
    return RoutingTable(
        backends=tuple(found),
        rules=tuple(rules),
        service_names=frozenset(spec.name for spec in by_id.values()),
        http_services=frozenset(spec.name for spec in by_id.values() if spec.config.speaks_http),
        portless_services=frozenset(spec.name for spec in by_id.values() if spec.config.needs_no_port),
    )


def _backend(
    spec: ServiceSpec,
    instance_id: str,
    state: BackendState,
    host: str,
    port: int,
    token: str,
    node_id: str,
    sessions_url: str | None,
) -> Backend:
    config = spec.config
    return Backend(
        instance_id=instance_id,
        service_id=spec.service_id,
        service_name=spec.name,
        host=host,
        port=port,
        tags=spec.tags,
        weight=config.weight,
        max_sessions=config.max_sessions,
        idle_timeout=config.idle_limit,
        max_message_bytes=config.max_message_bytes,
        state=state,
        starts_within=config.startup_timeout if config.on_demand else 0.0,
        resume_within=config.resumes_within,
        journaled=config.keeps_sessions and config.journal_url(sessions_url) is None,
        token=token,
        node_id=node_id,
    )


def _backend_state(instance: Instance) -> BackendState:
    if instance.adopted and instance.status is ServiceStatus.STARTING:
        return BackendState.SUSPECT  # it has sessions already, and has not answered to this manager yet
    state = _BACKEND_STATES[instance.status]
    if instance.serves is None and state is BackendState.ROUTABLE:
        return BackendState.COMING
    up = (BackendState.ROUTABLE, BackendState.COMING, BackendState.SUSPECT)
    if instance.serves is False and state in up:
        return BackendState.NO_LISTENER
    return state
