"""When a job is due, by its schedule and the wall clock.

The rules:

* A job is due when a moment of its schedule lies after those that were handled, and is not in the future.
  However many such moments there are, as after a suspension, or when the clock is set forward: it runs once.
* No moment is handled twice. A clock that is set back by up to `WRONG_BEFORE` repeats nothing; one that is
  set back further was wrong before, so what was handled by it does not count (as in Debian's cron).
* Around a change of the offset from UTC it is as in Debian's cron: a job at a time that does not exist runs
  right after it, one at a time that comes twice runs once, and one of every hour runs by real hours.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from attrs import frozen

from ..models import DesiredStatus, Instance, JobState, RunResult, ServiceConfig, ServiceSpec, ServiceStatus

WRONG_BEFORE = timedelta(hours=3)

OVER = (ServiceStatus.STOPPED, ServiceStatus.COMPLETED, ServiceStatus.ERROR)
"""The statuses of an instance in which nothing of it runs or will."""


@frozen
class Schedule:
    expression: str
    zone: tzinfo

    @lru_cache(4096)  # noqa: B019  # it is asked again and again for what comes after the same moment
    def after(self, moment: datetime) -> datetime | None:
        """The next moment, in UTC; None where there is none within decades."""
        from cronsim import CronSim

        for found in CronSim(self.expression, moment.astimezone(self.zone)):
            # It goes by the clock on the wall, which may show an hour that is over once more.
            if (at := found.astimezone(UTC)) > moment:
                return at
        return None


@frozen
class Look:
    """What a look at the clock shows."""

    due_at: datetime | None  #: the first moment that was not handled; None: nothing is due
    handled_until: datetime
    next_at: datetime | None


def look(schedule: Schedule, handled_until: datetime | None, now: datetime) -> Look:
    """`handled_until`: None for a schedule that begins now."""
    if handled_until is None or handled_until - now > WRONG_BEFORE:
        handled_until = now
    due_at = schedule.after(handled_until)
    if due_at is None or due_at > now:
        return Look(None, handled_until, due_at)
    return Look(due_at, now, schedule.after(now))


def named(config: ServiceConfig) -> str:
    """A schedule with its zone: what was handled belongs to it, and to no other."""
    return f"{config.schedule} {config.timezone or ''}".rstrip()


def next_run(
    spec: ServiceSpec, state: JobState | None, now: datetime, zone: Callable[[str | None], tzinfo]
) -> datetime | None:
    if spec.config.schedule is None or spec.desired_status is DesiredStatus.STOPPED:
        return None
    known = state is not None and state.schedule == named(spec.config)
    handled = state.handled_until if state is not None and known else None
    found = look(Schedule(spec.config.schedule, zone(spec.config.timezone)), handled, now)
    return found.due_at or found.next_at


def status(
    spec: ServiceSpec, found: ServiceStatus, state: JobState | None
) -> tuple[ServiceStatus, str | None]:
    """What its runs so far make of a service of which nothing runs, and why.

    Between the runs of its schedule it is `scheduled`, or in `error` if the last one failed. A job that runs
    once is `completed`; it is `stopped` if it is not known how it ended, and not run again by itself.
    What starts on demand is `asleep`.
    """
    config, last = spec.config, None if state is None else state.last
    if spec.desired_status is DesiredStatus.STOPPED or found not in (
        ServiceStatus.STOPPED,
        ServiceStatus.COMPLETED,
    ):
        return found, None
    if config.on_demand and found is ServiceStatus.STOPPED:
        return ServiceStatus.ASLEEP, None
    if config.schedule is None:
        if last is None or not (config.is_job and config.command):
            return found, None
        if last.result is RunResult.UNKNOWN:
            return found, f"not known how it ended: {last.reason}; `agentmgr start {spec.name}` runs it again"
        return (ServiceStatus.COMPLETED if last.result is RunResult.COMPLETED else found), None
    if last is not None and last.result is RunResult.FAILED:
        return ServiceStatus.ERROR, last.reason
    return ServiceStatus.SCHEDULED, None


def ended(instances: list[Instance]) -> RunResult | None:
    """The result of a run with these instances; None while one of them runs."""
    statuses = {instance.status for instance in instances}
    if not statuses or statuses - set(OVER):
        return None
    if ServiceStatus.ERROR in statuses:
        return RunResult.FAILED
    return RunResult.STOPPED if ServiceStatus.STOPPED in statuses else RunResult.COMPLETED
