"""Jobs that have completed: so that a manager's restart does not run them again.

A state is durable before the record of the process that it is about is written or dropped. So a manager that
is killed leaves either that record, by which the next one finds the process or that it is gone, or the state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from ..errors import ServiceNotFound, StorageError
from ..models import DesiredStatus, Instance, JobRun, JobState, RunResult, ServiceSpec, ServiceStatus, utc_now
from ..storage.store import Store
from ..supervisor import Supervisor
from .registry import Registry

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class Jobs:
    def __init__(
        self, store: Store, registry: Registry, supervisor: Supervisor, states: Mapping[str, JobState]
    ) -> None:
        self._store, self._registry, self._supervisor = store, registry, supervisor
        self._states = dict(states)  # by service id
        self._unwritten: set[str] = set()
        self._news = trio.Event()
        self._writing = trio.Lock()

    def completed(self) -> list[ServiceSpec]:
        """The services that have completed, and are not to be started again by themselves."""
        return [spec for spec in self._registry.services() if self._has_completed(spec)]

    def _has_completed(self, spec: ServiceSpec) -> bool:
        return spec.config.is_job and self._states.get(spec.service_id, JobState()).completed

    def instance_changed(self, instance: Instance) -> None:
        spec = self._registry.by_id.get(instance.service_id)
        if spec is None or not spec.config.is_job:
            return
        if instance.status is ServiceStatus.COMPLETED:
            instances = self._supervisor.instances(spec.service_id)
            if all(each.status is ServiceStatus.COMPLETED for each in instances):
                began_at = min((each.started_at for each in instances if each.started_at), default=utc_now())
                self._set(spec.service_id, JobState(JobRun(began_at, utc_now(), RunResult.COMPLETED)))
        elif self._has_completed(spec) and (
            instance.status is ServiceStatus.STARTING or spec.desired_status is DesiredStatus.STOPPED
        ):  # it was started again, or stopped, and not by the end of this manager
            self._set(spec.service_id, JobState())

    def forget(self, service_id: str) -> None:
        """Of a service that was unregistered."""
        self._states.pop(service_id, None)
        self._unwritten.discard(service_id)

    def _set(self, service_id: str, state: JobState) -> None:
        self._states[service_id] = state
        self._unwritten.add(service_id)
        self._news.set()

    async def written(self) -> None:
        """Returns when all states are durable. Raises `StorageError`."""
        async with self._writing:
            while self._unwritten:
                service_id = next(iter(self._unwritten))
                state = self._states[service_id]
                try:
                    await self._store.put_job(service_id, state)
                except ServiceNotFound:  # it was unregistered meanwhile
                    self.forget(service_id)
                if self._states.get(service_id) is state:
                    self._unwritten.discard(service_id)

    async def run(self) -> None:
        """Writes states soon after they change, until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            try:
                await self.written()
            except StorageError as error:
                logger.warning("the end of a job cannot be written, retrying: %s", error)
                await trio.sleep(_RETRY_S)
                self._news.set()
