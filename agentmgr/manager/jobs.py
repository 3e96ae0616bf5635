"""What is known of each job's runs: kept in step with its instances, and in the store.

A state is durable before the record of the process that it is about is dropped, and that a run has begun
before its process is launched. So a manager that is killed loses no run and doubles none: the next one finds
a run that was not launched yet, a process to adopt, or that the process is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import trio
from attrs import evolve

from ..core import schedule
from ..core.restart import LOST, Exit
from ..errors import ServiceNotFound, StorageError
from ..models import (
    DesiredStatus,
    Instance,
    InstanceRecord,
    JobRun,
    JobState,
    RunResult,
    ServiceSpec,
    ServiceStatus,
    utc_now,
)
from ..storage.store import Store
from ..supervisor import Supervisor
from .registry import Registry

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class Jobs:
    def __init__(
        self,
        store: Store,
        registry: Registry,
        supervisor: Supervisor,
        states: Mapping[str, JobState],
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store, self._registry, self._supervisor = store, registry, supervisor
        self._now = now
        self._states = dict(states)  # by service id
        self._instances: dict[str, set[str]] = {}  # those of the present run, by service id
        self._unwritten: set[str] = set()
        self._touched: set[str] = set()
        self._changed: set[str] = set()
        self._news = trio.Event()
        self._writing = trio.Lock()
        self.changed = trio.Event()  #: a run has ended; replaced when it is set

    def state(self, service_id: str) -> JobState:
        return self._states.get(service_id, JobState())

    def touched(self) -> set[str]:
        """The ids of the services whose runs have changed since this was last called."""
        touched, self._touched = self._touched, set()
        return touched

    def news(self) -> set[str]:
        """The same, for another who asks."""
        news, self._changed = self._changed, set()
        return news

    def completed(self) -> list[ServiceSpec]:
        """The services that have completed."""
        return self._whose_last_run(RunResult.COMPLETED)

    def over(self) -> list[ServiceSpec]:
        """The services that are not to be started again by themselves."""
        return self._whose_last_run(RunResult.COMPLETED, RunResult.UNKNOWN)

    def _whose_last_run(self, *results: RunResult) -> list[ServiceSpec]:
        return [
            spec
            for spec in self._registry.services()
            if spec.config.is_job
            and spec.config.schedule is None
            and spec.desired_status is DesiredStatus.RUNNING
            and (last := self.state(spec.service_id).last) is not None
            and last.result in results
        ]

    def find_lost(self, records: Iterable[InstanceRecord], *, boot_id: str | None = None) -> None:
        """Closes the runs that have ended while no manager ran. `records`: of the manager before; those of
        another `boot_id` than this one have ended with the machine.
        """
        launched = {record.service_id: record for record in records}
        for service_id, state in tuple(self._states.items()):
            spec = self._registry.by_id.get(service_id)
            if state.runs and spec is not None and not self._supervisor.instances(service_id):
                assert state.last is not None
                if spec.desired_status is DesiredStatus.STOPPED:  # it was run by a command, besides
                    self.finish(service_id, RunResult.INTERRUPTED)
                elif boot_id and (record := launched.get(service_id)) and _ended_with(boot_id, record):
                    self.finish(service_id, RunResult.INTERRUPTED, "the machine was restarted")
                elif state.last.instance_id is not None or service_id in launched:
                    self.finish(service_id, RunResult.UNKNOWN, "it ended while no manager ran")

    # What happens

    def begin(self, service_id: str, run: JobRun, **changes: object) -> None:
        self._instances.pop(service_id, None)
        self.set(service_id, evolve(self.state(service_id), last=run, **changes))  # type: ignore[arg-type]

    def finish(self, service_id: str, result: RunResult, reason: str | None = None) -> None:
        """Of the run that has begun; one that has ended keeps its result."""
        state = self.state(service_id)
        if state.runs:
            assert state.last is not None
            last = evolve(state.last, ended_at=self._now(), result=result, reason=reason)
            self.set(service_id, evolve(state, last=last))

    def instance_changed(self, instance: Instance) -> None:
        service_id = instance.service_id
        spec = self._registry.by_id.get(service_id)
        if spec is None or not (spec.config.is_job and spec.config.command):
            return
        mine = self._instances.setdefault(service_id, set())
        if instance.status is ServiceStatus.STARTING and instance.instance_id not in mine:
            if not self.state(service_id).runs:
                self.begin(service_id, JobRun(self._now()))
                mine = self._instances.setdefault(service_id, set())
            mine.add(instance.instance_id)
        instances = [i for i in self._supervisor.instances(service_id) if i.instance_id in mine]
        if instance.status in schedule.OVER and (result := schedule.ended(instances)) is not None:
            reason = next((each.error_message for each in instances if each.error_message), None)
            if instance.last_exit == str(Exit()):
                result, reason = RunResult.UNKNOWN, "an earlier manager had started it"
            elif instance.last_exit == LOST:
                result = RunResult.UNKNOWN
            elif result is RunResult.STOPPED and spec.desired_status is DesiredStatus.RUNNING:
                result = RunResult.INTERRUPTED
            self.finish(service_id, result, reason)

    def launched(self, record: InstanceRecord) -> None:
        state = self.state(record.service_id)
        if state.runs and record.instance_id in self._instances.get(record.service_id, ()):
            assert state.last is not None
            self.set(
                record.service_id, evolve(state, last=evolve(state.last, instance_id=record.instance_id))
            )

    # What is kept

    def set(self, service_id: str, state: JobState) -> None:
        self._states[service_id] = state
        self._unwritten.add(service_id)
        self._touched.add(service_id)
        self._changed.add(service_id)
        self._news.set()
        self.changed.set()
        self.changed = trio.Event()

    def forget(self, service_id: str) -> None:
        """Of a service that was unregistered."""
        self._states.pop(service_id, None)
        self._instances.pop(service_id, None)
        self._unwritten.discard(service_id)

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
                logger.warning("what is known of jobs cannot be written, retrying: %s", error)
                await trio.sleep(_RETRY_S)
                self._news.set()


def _ended_with(boot_id: str, record: InstanceRecord) -> bool:
    """Whether its machine was restarted since: of another one that is not known."""
    return not record.node_id and record.boot_id != boot_id
