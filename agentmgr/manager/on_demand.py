"""Starts services that are asleep when something wants them, and puts them to sleep when nothing uses them.

What wants one: a client that waits in a gateway, an operator who asks for its health or speaks in a session,
a service that starts `after` it, a turn that was left unfinished.

A service falls asleep in this order, so that no client is refused: its hosts say that nothing goes on; all
gateways learn that it takes no new client; if it has no connection then, and its hosts say once more that
nothing goes on, its instances are ended. Up to there a `wake` calls it off; later, it has the service started
again as soon as they have ended. While a gateway worker does not answer, nothing falls asleep: that worker
may be connecting a client.

What is asleep costs its registration only: no task, process, descriptor or file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Set

import trio

from ..core import on_demand
from ..core.dependencies import named
from ..errors import AgentManagerError, WrongState
from ..models import DesiredStatus, Event, Instance, ServiceSpec, ServiceStatus
from ..supervisor import Supervisor
from .events import EventLog
from .publisher import Publisher
from .registry import Registry

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0  #: before the next try, where a worker does not answer or a command is under way


class OnDemand:
    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        publisher: Publisher,
        events: EventLog,
        *,
        connections: Callable[[Iterable[Instance]], int],
        unfinished: Callable[[Iterable[ServiceSpec]], Awaitable[Set[str]]],
    ) -> None:
        """`connections` counts those of instances, those about to open included. `unfinished` finds the ids
        of those services that have turns which no instance has finished.
        """
        self._registry, self._supervisor = registry, supervisor
        self._publisher, self._events = publisher, events
        self._connections, self._unfinished = connections, unfinished
        self._seen: dict[str, tuple[str, ServiceStatus]] = {}  # service and status, by instance id
        self._free_since: dict[str, float] = {}  # by the id of the service; those that are awake
        self._due: dict[str, float] = {}  # when it is looked at next
        self._stale: set[str] = set()  # those that are looked at now
        self._falling: dict[str, trio.CancelScope | None] = {}
        """Those that take no new client: the scope calls it off; None: they are being ended."""
        self._woken: dict[str, str] = {}  # why, by the id of the service; until it is being started
        self._starting: set[str] = set()  #: those woken whose instances are not there yet
        self._news = trio.Event()

    @property
    def falling_asleep(self) -> Set[str]:
        """The ids of the services that take no new client."""
        return self._falling.keys()

    def is_asleep(self, spec: ServiceSpec) -> bool:
        return on_demand.is_asleep(spec, self._statuses(spec))

    def _statuses(self, spec: ServiceSpec) -> tuple[ServiceStatus, ...]:
        return tuple(instance.status for instance in self._supervisor.instances(spec.service_id))

    # To wake

    def wake(self, service_id: str, why: str = "a client waits for it") -> None:
        """Has it started in a moment if it is asleep; if it falls asleep, that is called off."""
        spec = self._registry.by_id.get(service_id)
        if spec is not None and service_id not in self._starting and self._must_start(spec):
            self._woken.setdefault(service_id, why)
            self._news.set()

    async def awake(self, spec: ServiceSpec, why: str) -> None:
        """Wakes it, and returns when it is ready. Raises what `Supervisor.start` does."""
        if self._must_start(spec):
            await self._start(spec.service_id, why, wait=True)
        elif spec.config.on_demand and ServiceStatus.STARTING in self._statuses(spec):
            await self._supervisor.start(spec)

    async def wake_needed(self, spec: ServiceSpec) -> ServiceSpec:
        """Starts what is asleep of the services that this one, which is to be started, starts after.

        Returns it as it is then. Raises `WrongState` when it was stopped meanwhile: a stop wins.
        """
        if spec.config.after:
            needed = set(named(spec.config.after))
            for other in self._registry.services():
                if other.name in needed and self._must_start(other):
                    await self._start(other.service_id, f"{spec.name} starts after it", wait=False)
        spec = self._registry.service(spec.service_id)
        if spec.desired_status is DesiredStatus.STOPPED:
            raise WrongState(f"service {spec.name} was stopped meanwhile")
        return spec

    async def wake_unfinished(self, specs: Iterable[ServiceSpec]) -> None:
        """Wakes those of them that have turns which no instance has finished."""
        asleep = [spec for spec in specs if self.is_asleep(spec)]
        for service_id in await self._unfinished(asleep) if asleep else ():
            self.wake(service_id, "a turn of it was left unfinished")

    def _must_start(self, spec: ServiceSpec) -> bool:
        """Whether it is down, or about to be; calls that off where it can."""
        if spec.service_id not in self._falling:
            return self.is_asleep(spec) and not self._supervisor.is_begun(spec.service_id)
        if (scope := self._falling[spec.service_id]) is not None:
            scope.cancel()
        return scope is None and spec.desired_status is DesiredStatus.RUNNING

    async def _start(self, service_id: str, why: str, *, wait: bool) -> None:
        spec = await self.wake_needed(self._registry.service(service_id))
        self._announce("service.woken", spec, why)
        await self._supervisor.start(spec, wait=wait)

    async def _start_soon(self, service_id: str, why: str) -> None:
        spec = self._registry.by_id.get(service_id)
        if spec is None or service_id in self._starting or not self._must_start(spec):  # another came first
            return
        self._starting.add(service_id)
        try:
            await self._start(service_id, why, wait=False)
        except AgentManagerError as error:
            spec = self._registry.by_id.get(service_id)
            logger.warning("service %s was not woken: %s", spec.name if spec else service_id, error)
        finally:
            self._starting.discard(service_id)

    # What happens to it

    def instance_changed(self, instance: Instance) -> None:
        """Of any service."""
        spec = self._registry.by_id.get(instance.service_id)
        if spec is None or not (spec.config.on_demand or instance.instance_id in self._seen):
            return
        service_id, status = instance.service_id, instance.status
        _, before = self._seen.pop(instance.instance_id, (service_id, None))
        if status is not ServiceStatus.STOPPED:
            self._seen[instance.instance_id] = service_id, status
        if status is ServiceStatus.RUNNING and before not in (status, ServiceStatus.UNHEALTHY):
            self._free_since[service_id] = trio.current_time()
        if status is not before:
            self._look_soon(service_id)

    def vacated(self, instance_id: str) -> None:
        """The last connection of an instance has ended."""
        if (seen := self._seen.get(instance_id)) is not None:
            self._free_since[seen[0]] = trio.current_time()

    def look_again(self, spec: ServiceSpec) -> None:
        """It was changed."""
        if spec.config.on_demand:
            for instance in self._supervisor.instances(spec.service_id):
                self.instance_changed(instance)
        self._look_soon(spec.service_id)

    def _look_soon(self, service_id: str) -> None:
        self._stale.add(service_id)
        self._news.set()

    # To sleep

    async def run(self) -> None:
        """Wakes services and puts them to sleep, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.wake_unfinished, self._registry.services())
            while True:
                self._news = trio.Event()
                while self._woken:
                    nursery.start_soon(self._start_soon, *self._woken.popitem())
                now = trio.current_time()
                stale = self._stale | {service_id for service_id, at in self._due.items() if at <= now}
                self._stale = set()
                for service_id in stale - self._falling.keys():
                    self._due.pop(service_id, None)
                    at = self._sleeps_at(service_id)
                    if at <= now:
                        self._due[service_id] = math.inf
                        nursery.start_soon(self._fall_asleep, service_id)
                    elif at < math.inf:
                        self._due[service_id] = at
                with trio.move_on_at(min(self._due.values(), default=math.inf)):
                    await self._news.wait()

    def _sleeps_at(self, service_id: str, quiet_s: float = math.inf) -> float:
        """When it may fall asleep, as far as is known. `quiet_s`: what its hosts say."""
        spec = self._registry.by_id.get(service_id)
        instances = self._supervisor.instances(service_id)
        if spec is None or not spec.config.on_demand or not instances:
            self._free_since.pop(service_id, None)
            return math.inf
        now = trio.current_time()
        use = on_demand.Use(
            tuple(instance.status for instance in instances),
            self._connections(instances),
            self._free_since.setdefault(service_id, now),
            quiet_s,
            self._is_needed(spec),
        )
        return on_demand.sleeps_at(use, spec.config.idle_stop_s, now)

    def _is_needed(self, spec: ServiceSpec) -> bool:
        return any(
            other.config.after
            and spec.name in named(other.config.after)
            and any(status is not ServiceStatus.STOPPED for status in self._statuses(other))
            for other in self._registry.by_id.values()
        )

    async def _fall_asleep(self, service_id: str) -> None:
        """Ends its instances, unless something turns out to use it."""
        at = self._sleeps_at(service_id, await self._supervisor.quiet_s(service_id))
        if at > trio.current_time() or service_id in self._falling:
            self._look_at(service_id, at)
            return
        scope = self._falling[service_id] = trio.CancelScope()
        try:
            with scope:
                self._publisher.changed()
                known = await self._publisher.published()
                at = self._sleeps_at(service_id, await self._supervisor.quiet_s(service_id))
                if not known:
                    at = trio.current_time() + _AGAIN_S
            if scope.cancel_called:
                self._free_since[service_id] = trio.current_time()
                self._look_soon(service_id)
            elif at > trio.current_time():
                self._look_at(service_id, at)
            else:
                self._falling[service_id] = None
                await self._end(self._registry.service(service_id))
        finally:
            del self._falling[service_id]
            self._publisher.changed()

    async def _end(self, spec: ServiceSpec) -> None:
        why = f"nothing has used it for {spec.config.idle_stop_s:g} s"
        if await self._supervisor.put_to_sleep(spec.service_id, why):
            self._announce("service.asleep", spec, why)
            self._look_soon(spec.service_id)
        else:
            self._look_at(spec.service_id, trio.current_time() + _AGAIN_S)

    def _look_at(self, service_id: str, at: float) -> None:
        self._due[service_id] = at
        self._news.set()

    def _announce(self, kind: str, spec: ServiceSpec, why: str) -> None:
        detail = {"name": spec.name, "reason": why}
        self._events.announce(Event(kind, service_id=spec.service_id, detail=detail))
