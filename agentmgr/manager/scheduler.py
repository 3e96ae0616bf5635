"""Runs jobs by their schedules: looks at the clock, begins what is due, and minds the run before.

Each run is a start of the service: restarts after failures, limits and logs are as for any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import cache

import trio
from attrs import evolve

from ..core import schedule
from ..core.schedule import Schedule
from ..errors import AgentManagerError, InvalidRequest, StorageError, WrongState
from ..models import DesiredStatus, Event, JobRun, Overlap, RunResult, ServiceSpec, utc_now
from ..process.zones import zone
from ..supervisor import Supervisor
from .events import EventLog
from .jobs import Jobs
from .registry import Registry

logger = logging.getLogger(__name__)

LOOK_S = 10.0  #: between looks at the clock, which may be set at any time


class Scheduler:
    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        jobs: Jobs,
        events: EventLog,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._registry, self._supervisor, self._jobs, self._events = registry, supervisor, jobs, events
        self._now = now
        self._beginning: dict[str, trio.CancelScope] = {}  # runs that are about to be launched
        self._nursery: trio.Nursery | None = None
        self._look_at_all = 0.0  # when to
        self._zone = cache(zone)  # to read this machine's takes longer than all the rest of a look

    def next_run(self, spec: ServiceSpec) -> datetime | None:
        try:
            return schedule.next_run(spec, self._jobs.state(spec.service_id), self._now(), self._zone)
        except InvalidRequest:  # the zone: it was registered on another machine
            return None

    def resume(self) -> None:
        """Decides what becomes of runs that an earlier manager has begun, or that were missed since."""
        for spec in self._scheduled():
            if not spec.config.catch_up:
                self._pass_over_missed(spec)
            state = self._jobs.state(spec.service_id)
            cut_short = state.last is not None and state.last.result is RunResult.INTERRUPTED
            not_launched = state.runs and not self._lives(spec)
            if state.last is not None and (not_launched or (cut_short and spec.config.catch_up)):
                self._begin(spec, state.last.due_at)

    async def run(self) -> None:
        """Begins runs when they are due, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self.resume()
            comes: dict[str, datetime] = {}  # when each is due, by service id
            while True:
                changed, now = self._jobs.changed, self._now()
                # Many run in the same minute: only those of which there is news are looked at again.
                stale = self._jobs.news() | {each for each, at in comes.items() if at <= now}
                if trio.current_time() >= self._look_at_all:
                    self._look_at_all = trio.current_time() + LOOK_S
                    self._zone = cache(zone)
                    stale, comes = {spec.service_id for spec in self._scheduled()}, {}
                for service_id in stale:
                    spec = self._registry.by_id.get(service_id)
                    if spec is not None and _is_scheduled(spec) and (at := self._look(spec)) is not None:
                        comes[service_id] = at
                    else:
                        comes.pop(service_id, None)
                left_s = min(((at - now).total_seconds() for at in comes.values()), default=LOOK_S)
                with trio.move_on_after(min(max(left_s, 0), self._look_at_all - trio.current_time())):
                    await changed.wait()

    def _scheduled(self) -> list[ServiceSpec]:
        return [spec for spec in self._registry.by_id.values() if _is_scheduled(spec)]

    def _lives(self, spec: ServiceSpec) -> bool:
        instances = self._supervisor.instances(spec.service_id)
        return any(instance.status not in schedule.OVER for instance in instances)

    def _look(self, spec: ServiceSpec) -> datetime | None:
        """Begins a run if one is due; returns when the next one is."""
        state, config = self._jobs.state(spec.service_id), spec.config
        named = schedule.named(config)
        if state.schedule != named:
            state = evolve(state, schedule=named, handled_until=None, waiting=None)
        assert config.schedule is not None
        try:
            found = schedule.look(
                Schedule(config.schedule, self._zone(config.timezone)), state.handled_until, self._now()
            )
        except InvalidRequest as error:
            logger.error("service %s does not run by its schedule: %s", spec.name, error)
            return None
        if found.handled_until != state.handled_until:
            state = evolve(state, handled_until=found.handled_until)
            self._jobs.set(spec.service_id, state)
        busy = spec.service_id in self._beginning or self._lives(spec)
        if found.due_at is not None:
            self._due(spec, found.due_at, busy=busy)
        elif state.waiting is not None and not busy:
            self._begin(spec, state.waiting)
        return found.next_at

    def _pass_over_missed(self, spec: ServiceSpec) -> None:
        state = self._jobs.state(spec.service_id)
        if state.schedule != schedule.named(spec.config) or state.handled_until is None:
            return
        now = self._now()
        missed_at = self.next_run(spec)  # in the past, if it was missed
        if missed_at is not None and missed_at <= now:
            self._announce("job.missed", spec, missed_at)
            self._jobs.set(spec.service_id, evolve(state, handled_until=now))

    def _due(self, spec: ServiceSpec, at: datetime | None, *, busy: bool) -> None:
        """A run is due, or asked for (`at` is None), while another one runs (`busy`) or not."""
        state = self._jobs.state(spec.service_id)
        if not busy or spec.config.overlap is Overlap.KILL:
            self._begin(spec, at)
        elif spec.config.overlap is Overlap.QUEUE and state.waiting is None:
            self._jobs.set(spec.service_id, evolve(state, waiting=at or self._now()))
        else:
            self._skip(spec, at)

    def _skip(self, spec: ServiceSpec, at: datetime | None) -> None:
        last = self._jobs.state(spec.service_id).last
        if last is not None and last.result is None:
            if not last.skipped:
                logger.warning(
                    "service %s: the run that began at %s goes on; later ones are skipped until it ends",
                    spec.name, last.began_at.isoformat(timespec="seconds"),
                )  # fmt: skip
            last = evolve(last, skipped=last.skipped + 1)
            self._jobs.set(spec.service_id, evolve(self._jobs.state(spec.service_id), last=last))
        self._announce("job.skipped", spec, at, runs_since=last.began_at.isoformat() if last else None)

    def _begin(self, spec: ServiceSpec, due_at: datetime | None) -> None:
        """Has a run begin at once, and the present one end."""
        self._jobs.finish(spec.service_id, RunResult.STOPPED, "the next run took its place")
        run = JobRun(self._now(), due_at)
        self._jobs.begin(spec.service_id, run, waiting=None)
        self.cancel(spec.service_id)
        assert self._nursery is not None
        scope = self._beginning[spec.service_id] = trio.CancelScope()
        self._nursery.start_soon(self._launch, spec, scope)

    async def _launch(self, spec: ServiceSpec, scope: trio.CancelScope) -> None:
        service_id = spec.service_id
        try:
            with scope:
                try:
                    await self._jobs.written()
                except StorageError as error:  # a full disk is no reason not to run
                    logger.warning("the run of %s could not be written down: %s", spec.name, error)
                if self._lives(spec):
                    await self._supervisor.stop(service_id, force=True)
                await self._supervisor.start(spec, wait=False)
        except WrongState:
            pass  # the supervisor ends: the next manager finds that it was not launched
        except AgentManagerError as error:
            self._jobs.finish(service_id, RunResult.FAILED, error.message)
        finally:
            if self._beginning.get(service_id) is scope:
                del self._beginning[service_id]

    def _announce(self, kind: str, spec: ServiceSpec, at: datetime | None, **more: str | None) -> None:
        detail = {"name": spec.name, **more} | ({} if at is None else {"due_at": at.isoformat()})
        self._events.announce(Event(kind, service_id=spec.service_id, detail=detail))

    # Commands

    def look_again(self) -> None:
        """A schedule has begun, or changed."""
        self._look_at_all = 0.0
        self._jobs.changed.set()
        self._jobs.changed = trio.Event()

    def run_now(self, spec: ServiceSpec) -> None:
        """Raises `WrongState` where it has no schedule, or runs and may not run twice."""
        if spec.config.schedule is None:
            raise WrongState(f"{spec.name!r} has no schedule: `agentmgr start {spec.name}` runs it")
        busy = spec.service_id in self._beginning or self._lives(spec)
        if busy and spec.config.overlap is Overlap.SKIP:
            raise WrongState(
                f"{spec.name!r} runs already; `agentmgr change {spec.name} --overlap queue` or `kill` "
                "allows to ask for another run"
            )
        self._due(spec, None, busy=busy)

    def stop(self, service_id: str) -> None:
        """Ends the schedule, and a run that is about to begin; the supervisor ends one that runs."""
        self.cancel(service_id)
        state = self._jobs.state(service_id)
        if state.schedule is not None:
            self._jobs.set(service_id, evolve(state, schedule=None, handled_until=None, waiting=None))
        if not self._supervisor.instances(service_id):
            self._jobs.finish(service_id, RunResult.STOPPED)

    def cancel(self, service_id: str) -> None:
        if (scope := self._beginning.pop(service_id, None)) is not None:
            scope.cancel()


def _is_scheduled(spec: ServiceSpec) -> bool:
    return spec.config.schedule is not None and spec.desired_status is DesiredStatus.RUNNING
