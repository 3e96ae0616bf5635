"""The tasks of all instances of a supervisor: how one begins, where it runs, and how commands take turns."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ..errors import ServiceGivenUp, WrongState
from ..models import Instance, ServiceSpec, ServiceStatus, new_id
from .instance import InstanceTask, SupervisorContext
from .launcher import MAX_CONCURRENT_PROBES, Child, Launcher, Slot
from .recorder import RetryingRecorder
from .service import ServiceInstances, missing

log = logging.getLogger("agentmgr.supervisor")


class InstanceTasks:
    """Of each service, its instances; each has a task in the supervisor's nursery while that is open."""

    def __init__(
        self,
        launcher: Launcher,
        recorder: RetryingRecorder,
        *,
        health_check_interval: float,
        random: Callable[[], float],
    ) -> None:
        self.launcher = launcher  #: of services that are processes
        self.recorder = recorder
        self.services: dict[str, ServiceInstances] = {}  #: by id, in the order of their starts
        self.closing = False  #: nothing is begun any more
        self.failure: ServiceGivenUp | None = None  #: of a service without which the supervisor ends
        self.failed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._context = SupervisorContext(
            recorder=recorder,
            missing=lambda spec: missing(self.services, spec),
            health_check_interval=health_check_interval,
            random=random,
            probes=trio.CapacityLimiter(MAX_CONCURRENT_PROBES),
            node_name=launcher.node_name,
        )

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    @property
    def nursery(self) -> trio.Nursery:
        """Raises `WrongState` while nothing can be begun."""
        if self.closing:
            raise WrongState("the supervisor is shutting down")
        if self._nursery is None:
            raise WrongState("the supervisor is not running")
        return self._nursery

    def known(self, spec: ServiceSpec) -> ServiceInstances:
        return self.services.setdefault(spec.service_id, ServiceInstances(spec, self.launcher))

    def of(self, service_id: str | None) -> list[InstanceTask]:
        """Those of one service, or of all, by position."""
        services = self.services.values() if service_id is None else [self.services.get(service_id)]
        return [
            task
            for service in services
            if service is not None
            for task in sorted(service.tasks, key=lambda task: task.view.slot)
        ]

    def find(self, instance_id: str) -> InstanceTask | None:
        every = (task for service in self.services.values() for task in service.tasks)
        return next((task for task in every if task.view.instance_id == instance_id), None)

    @asynccontextmanager
    async def command(self, spec: ServiceSpec, stops: int | None = None) -> AsyncIterator[ServiceInstances]:
        """Waits for the service's lock; raises `WrongState` when the service was stopped since.

        `stops`: `service.stops` when the command was given; None: it is given now.
        """
        assert self.nursery, "nothing is to wait for a command that cannot begin"
        service = self.known(spec)
        stops = service.stops if stops is None else stops
        async with service.lock:
            if stops == service.stops:
                with trio.CancelScope() as service.command:
                    yield service
        if stops != service.stops:
            raise WrongState(f"service {spec.name} was stopped meanwhile")

    def begin(self, service: ServiceInstances, spec: ServiceSpec, position: int) -> InstanceTask:
        """Starts one at that position."""
        instance_id = service.kept_ids.pop(position, None) or new_id("ins")
        slot = service.launcher.slot(spec, instance_id, position)
        return self.begin_in(slot, service, spec, instance_id, position)

    def begin_in(
        self,
        slot: Slot,
        service: ServiceInstances,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
        adopted: Child | None = None,
    ) -> InstanceTask:
        task = self.made(slot, spec, instance_id, position, ServiceStatus.STOPPED, adopted)
        service.spec = spec
        service.tasks.append(task)
        self.nursery.start_soon(self._run, service, task, name=f"{spec.name}/{position}")
        self.nursery.start_soon(self._keep_entry, task)
        return task

    def made(
        self,
        slot: Slot,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
        status: ServiceStatus,
        adopted: Child | None = None,
    ) -> InstanceTask:
        """One that does not run yet."""
        view = Instance(instance_id, spec.service_id, position, status, spec_version=spec.version)
        return InstanceTask(spec, view, slot, self._context, adopted)

    async def _run(self, service: ServiceInstances, task: InstanceTask) -> None:
        try:
            await task.run()
        finally:
            if task.stopped and task in service.tasks:
                service.tasks.remove(task)
        if service.raises and task.view.status is ServiceStatus.ERROR and self.failure is None:
            self.failure = ServiceGivenUp(f"service {task.spec.name} was given up: {task.view.error_message}")
            self.failed.set()

    async def _keep_entry(self, task: InstanceTask) -> None:
        """A task of its own: a stop must not wait for the disk, and must not lose a write."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.entry.keep)
            await task.over.wait()
            nursery.cancel_scope.cancel()

    async def run_launcher(self) -> None:
        """Runs the launcher's housekeeping (logs, usage); its failure must not end the instances."""
        while True:
            try:
                await self.launcher.run()
            except* Exception:
                log.exception("internal error: housekeeping (logs, usage) failed; starting it again in 1 s")
                await trio.sleep(1)
