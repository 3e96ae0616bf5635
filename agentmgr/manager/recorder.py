"""What the supervisor and the gateway report: written to the store, counted, announced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from .. import models
from ..core.recent import HourlyCount, RecentLatency, minute_of
from ..core.stats import Histogram, counted
from ..models import SERVING, ConnectionEnd, Event, HealthCheck, Instance, ServiceStatus, ServiceTotals
from ..storage.store import Store
from .events import EventLog

if TYPE_CHECKING:
    from .hooks import Hooks
    from .jobs import Jobs
    from .on_demand import OnDemand

_LAG_SAMPLE_S = 0.5


@frozen
class Figures:
    """What was measured since the manager started; `GET /metrics` shows it."""

    handshakes: Histogram = field(factory=Histogram)
    first_bytes: Histogram = field(factory=Histogram)
    checks: Histogram = field(factory=Histogram)
    loop_lag: Histogram = field(factory=Histogram)
    checks_failed: Counter[bool] = field(factory=Counter)  #: by whether they did
    refusals: Counter[str] = field(factory=Counter)  #: by their code


class Recorder:
    """Writes down, counts and announces what the supervisor and the gateway report.

    It is the `InstanceRecorder` of the one and the `ConnectionObserver` of the other; those two know nothing
    of each other, of the store, or of who follows events.
    """

    def __init__(
        self,
        store: Store,
        events: EventLog,
        totals: Mapping[str, ServiceTotals],
        *,
        changed: Callable[[], None],
        drain: Callable[[str, float, bool], Awaitable[None]],
        active: Callable[[str], int],
        jobs: Callable[[], Jobs],
        hooks: Callable[[], Hooks],
        on_demand: Callable[[], OnDemand],
        load_changed: Callable[[str], None],
        launched: Callable[[models.InstanceRecord], None],
        ended: Callable[[str], None],
    ) -> None:
        """`changed` is called when the gateway's table is out of date; `drain` ends the connections of an
        instance, in time; `active` counts those of a service; `jobs` keeps how jobs have ended;
        `hooks` tells the outside of failures; `on_demand` puts to sleep what nothing uses; `load_changed` is
        called with the id of a service when an instance of it has changed, or a client has come; `launched`
        and `ended` hear of each run of an instance.
        """
        self.figures = Figures()
        self._store = store
        self._events = events
        self._totals = dict(totals)
        self._changed = changed
        self._drain = drain
        self._active = active
        self._jobs, self._hooks, self._on_demand = jobs, hooks, on_demand
        self._load_changed = load_changed
        self._launched, self._ended = launched, ended
        self._last_seen: dict[str, tuple[ServiceStatus, models.HealthStatus]] = {}
        self._last_found: dict[str, tuple[bool, models.HealthStatus, str | None]] = {}  # by the last check
        self._touched: set[str] = set()
        self.first_bytes = RecentLatency()  #: by service id
        self.rule_hits = HourlyCount()  #: connections, by the name of the rule that chose, if one did

    def totals(self, service_id: str) -> ServiceTotals:
        return self._totals.get(service_id, ServiceTotals())

    def forget(self, service_id: str) -> None:
        """Drops the totals of a service that was unregistered."""
        self._totals.pop(service_id, None)

    def touched(self) -> set[str]:
        """The ids of the services whose instances have changed since this was last called."""
        touched, self._touched = self._touched, set()
        return touched

    def restarts(self) -> int:
        """Unplanned ones of all services, ever."""
        return sum(totals.restarts for totals in self._totals.values())

    def _count(self, fact: models.Fact) -> None:
        if fact.service_id is not None:
            self._totals[fact.service_id] = counted(self.totals(fact.service_id), fact)

    async def measure_lag(self) -> None:
        """Measures how late a task of this process wakes up, until cancelled."""
        while True:
            due = trio.current_time() + _LAG_SAMPLE_S
            await trio.sleep_until(due)
            self.figures.loop_lag.observe(trio.current_time() - due)

    # Of the supervisor

    async def instance_spawned(self, record: models.InstanceRecord) -> None:
        self._launched(record)
        await self._store.put_instance(record)
        self._jobs().launched(record)
        await self._jobs().written()

    async def instance_gone(self, instance_id: str) -> None:
        await self._jobs().written()
        await self._store.delete_instance(instance_id)

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        await self._drain(instance_id, timeout_s, for_good)

    def health_checked(self, check: HealthCheck) -> None:
        found = (check.ok, check.status, check.reason)
        if self._last_found.get(check.instance_id) != found:  # of 10,000 instances, all would be 8 GB a day
            self._store.record(check)
            if check.instance_id in self._last_seen:
                self._last_found[check.instance_id] = found
        self.figures.checks_failed[not check.ok] += 1
        if check.latency_s is not None:
            self.figures.checks.observe(check.latency_s)

    def instance_changed(self, instance: Instance) -> None:
        seen, last = (instance.status, instance.health), self._last_seen.get(instance.instance_id)
        if seen != last:
            self._last_seen[instance.instance_id] = seen
            # A change of health alone is `instance.health`: `instance.running` would mean a new start.
            changed = instance.status if last is None or last[0] is not instance.status else "health"
            self._announce(f"instance.{changed}", instance)
            if changed != "health":
                self._hooks().instance_changed(instance)
        if instance.status not in SERVING:  # what the next checks find is news, be it the same
            self._last_found.pop(instance.instance_id, None)
        if instance.status is ServiceStatus.STOPPED:
            del self._last_seen[instance.instance_id]
        self._touched.add(instance.service_id)
        self._jobs().instance_changed(instance)
        self._on_demand().instance_changed(instance)
        self._load_changed(instance.service_id)
        self._changed()

    def instance_ended(self, end: models.InstanceEnd) -> None:
        self._ended(end.instance_id)
        self._store.record(end)

    def _announce(self, kind: str, instance: Instance) -> None:
        detail = {
            name: getattr(instance, name)
            for name in ("slot", "pid", "status", "health", "last_exit", "error_message")
        }
        if instance.node:
            detail["node"] = instance.node
        if instance.next_restart_at is not None:
            detail["next_restart_at"] = instance.next_restart_at.isoformat()
        event = Event(kind, service_id=instance.service_id, instance_id=instance.instance_id, detail=detail)
        self._count(self._events.announce(event))

    # Of the gateway

    def connection_opened(self, connection: models.Connection) -> None:
        service_id = connection.service_id
        self._load_changed(service_id)
        if (active := self._active(service_id)) > self.totals(service_id).sessions_peak:
            peak = models.ConnectionPeak(service_id, active)
            self._store.record(peak)
            self._count(peak)
        if connection.handshake_s is not None:
            self.figures.handshakes.observe(connection.handshake_s)
        # It may have been opened before this manager began.
        self.rule_hits.add(connection.rule, minute_of(connection.started_at), minute_of(models.utc_now()))

    def connection_resumed(self, connection: models.Connection) -> None:
        event = Event(
            "session.resumed",
            service_id=connection.service_id,
            instance_id=connection.instance_id,
            detail={"connection_id": connection.connection_id, "resumed": connection.resumed},
        )
        self._events.announce(event)

    def connection_closed(self, end: ConnectionEnd) -> None:
        if end.first_byte_s is not None:
            self.figures.first_bytes.observe(end.first_byte_s)
            self.first_bytes.observe(end.service_id, end.first_byte_s, minute_of(end.ended_at))
        self._store.record(end)
        self._count(end)
        if not end.is_request:  # many a second: in an hour they would have driven out all else that happened
            self._events.announce(end.event)

    def client_refused(self, code: str) -> None:
        self.figures.refusals[code] += 1
