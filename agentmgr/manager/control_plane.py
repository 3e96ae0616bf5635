"""Where supervisor, gateway, store and registry meet: what each of them tells the others."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from ..core.totals import counted
from ..core.view import routing_table, service_view
from ..errors import ConnectionNotFound
from ..models import (
    Connection,
    ConnectionEnd,
    ConnectionPeak,
    DesiredStatus,
    Event,
    Fact,
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceRecord,
    Service,
    ServiceSpec,
    ServiceStatus,
    ServiceTotals,
    Usage,
)
from ..settings import Settings
from ..storage.store import Snapshot, Store
from ..supervisor import Supervisor
from .events import EventLog
from .figures import Figures
from .gateway_access import GatewayAccess
from .registry import Registry
from .worker_manager import WorkerManager


class ControlPlane:
    """The live parts of one manager.

    It is the supervisor's `InstanceRecorder` and the gateway's `ConnectionObserver`; those two know nothing
    of each other, of the store, or of who listens to events.
    """

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        nursery: trio.Nursery,
        *,
        log_dir: Path,
        settings: Settings,
        access: GatewayAccess,
    ) -> None:
        self.nursery = nursery
        self.access = access
        self.store = store
        self.registry = Registry(store, snapshot.services, snapshot.rules)
        self.events = EventLog(store)
        self.figures = Figures()
        self.supervisor = Supervisor(
            self, log_dir=log_dir, health_check_interval=settings.health_check_interval
        )
        self.worker_manager = WorkerManager(settings, observer=self, access=access)
        self.gateway = self.worker_manager.gateway
        self.ending = False  #: services end for good, and the gateway after them
        self._totals = dict(snapshot.totals)
        self._stale = trio.Event()
        self._published = trio.Event()
        self._last_seen: dict[str, tuple[ServiceStatus, HealthStatus]] = {}

    # The view.

    def view(self, spec: ServiceSpec) -> Service:
        instances = [self._with_usage(i) for i in self.supervisor.instances(spec.service_id)]
        return service_view(
            spec, instances, sum(self.gateway.active_connections(i.instance_id) for i in instances)
        )

    def _with_usage(self, instance: Instance) -> Instance:
        samples = self.supervisor.usage(instance.instance_id) if instance.pid is not None else ()
        return evolve(instance, usage=samples[-1]) if samples else instance

    def usage(self, service_id: str) -> dict[str, tuple[Usage, ...]]:
        """The samples of each of its instances, oldest first."""
        return {
            i.instance_id: self.supervisor.usage(i.instance_id) for i in self.supervisor.instances(service_id)
        }

    def troubles(self) -> tuple[str, ...]:
        """What does not work just now, and will again by itself; services run on all the same."""
        storage = () if self.store.degraded is None else (self.store.degraded,)
        return storage + self.supervisor.troubles()

    def views(self) -> list[Service]:
        return [self.view(spec) for spec in self.registry.services()]

    def connections(self) -> tuple[Connection, ...]:
        """The live sessions, through this process and through workers."""
        return (*self.gateway.connections(), *self.worker_manager.connections())

    def disconnect(self, connection_id: str, *, code: int, reason: str) -> None:
        """Raises `ConnectionNotFound`, and `ValueError` for a code that cannot be sent."""
        try:
            self.gateway.disconnect(connection_id, code=code, reason=reason)
        except ConnectionNotFound:
            self.worker_manager.disconnect(connection_id, code=code, reason=reason)

    def totals(self, service_id: str) -> ServiceTotals:
        return self._totals.get(service_id, ServiceTotals())

    # What the gateway may know. A table is made of everything there is, so changes that come together, as
    # when a thousand instances stop, share one.

    def changed(self) -> None:
        """The gateway's table is out of date; it gets another one in a moment."""
        self._stale.set()

    async def published(self) -> None:
        """Returns when the gateway and its workers know of all that has changed so far."""
        if self._stale.is_set():
            await self._published.wait()
        await self.worker_manager.applied()

    async def keep_publishing(self) -> None:
        """Until cancelled."""
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            table = routing_table(
                self.registry.services(),
                self.registry.rules(),
                self.supervisor.instances(),
                self.supervisor.tokens(),
            )
            self.gateway.update(table)
            self.gateway.keep_tokens(self.access.tokens.ids | self.access.tokens.left_open)
            self.worker_manager.publish(table)
            self._published.set()
            self._published = trio.Event()

    def forget(self, service_id: str) -> None:
        """Drop the figures of a service that was unregistered."""
        self._totals.pop(service_id, None)

    # The supervisor's recorder

    async def instance_spawned(self, record: InstanceRecord) -> None:
        await self.store.put_instance(record)

    async def instance_gone(self, instance_id: str) -> None:
        await self.store.delete_instance(instance_id)

    def instance_changed(self, instance: Instance) -> None:
        seen, last = (instance.status, instance.health), self._last_seen.get(instance.instance_id)
        if seen != last:
            self._last_seen[instance.instance_id] = seen
            # What runs on is not running anew because it answers its checks in another way.
            changed = instance.status if last is None or last[0] is not instance.status else "health"
            self._announce_instance(f"instance.{changed}", instance)
        if instance.status is ServiceStatus.STOPPED:
            del self._last_seen[instance.instance_id]
        self.changed()

    def health_checked(self, check: HealthCheck) -> None:
        self.store.record(check)
        self.figures.health_checked(check)

    async def drain(self, instance_id: str, timeout_s: float) -> None:
        for_good = self.ending or self._stays_stopped(instance_id)
        deadline = trio.current_time() + timeout_s
        try:
            await self.published()  # no new client comes to it from here on
            idle_s = await self.supervisor.drain_idle_s(instance_id)
            left_s = max(0.0, deadline - trio.current_time())
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

    def _stays_stopped(self, instance_id: str) -> bool:
        """Whether its service is to stop, and not only to restart or to have fewer instances."""
        mine = {i.service_id for i in self.supervisor.instances() if i.instance_id == instance_id}
        return any(
            spec.service_id in mine and spec.desired_status is DesiredStatus.STOPPED
            for spec in self.registry.services()
        )

    def _announce_instance(self, kind: str, instance: Instance) -> None:
        event = Event(
            kind,
            service_id=instance.service_id,
            instance_id=instance.instance_id,
            detail={
                "slot": instance.slot,
                "pid": instance.pid,
                "status": instance.status,
                "health": instance.health,
                "last_exit": instance.last_exit,
                "error_message": instance.error_message,
            },
        )
        self._count(self.events.announce(event))

    # The gateway's observer

    def connection_opened(self, connection: Connection) -> None:
        service_id = connection.service_id
        active = sum(
            self.gateway.active_connections(i.instance_id) for i in self.supervisor.instances(service_id)
        )
        if active > self.totals(service_id).sessions_peak:
            peak = ConnectionPeak(service_id, active)
            self.store.record(peak)
            self._count(peak)
        self.figures.connection_opened(connection)

    def client_refused(self, code: str) -> None:
        self.figures.client_refused(code)

    def connection_closed(self, end: ConnectionEnd) -> None:
        self.figures.connection_closed(end)
        self.store.record(end)
        self._count(end)
        self.events.announce(end.event)

    def _count(self, fact: Fact) -> None:
        if fact.service_id is not None:
            self._totals[fact.service_id] = counted(self.totals(fact.service_id), fact)
