"""Jobs: commands that end by themselves, once or by a schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from attrs import Attribute, frozen

from .fields import check_text, invalid, option
from .host_config import HostConfig


class Overlap(StrEnum):
    """What becomes of a run that is due while the one before it runs."""

    SKIP = "skip"
    QUEUE = "queue"  #: it runs when that has ended; at most one waits
    KILL = "kill"  #: that one is ended


def check_schedule(_: Any, attribute: Attribute[Any], value: str | None) -> None:
    if value is None:
        return
    from cronsim import CronSim, CronSimError  # 14 ms that only a schedule needs

    try:
        next(CronSim(value, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        reason = str(error).lower()
        raise invalid(
            attribute.name, f"must be five fields of cron, as in '0 3 * * *', not {value!r}: {reason}"
        ) from None
    except StopIteration:
        raise invalid(attribute.name, f"has no moment that ever comes: {value!r}") from None


@frozen
class JobConfig(HostConfig):
    """By which schedule a command runs."""

    schedule: str | None = option(
        None,
        'When a command runs, as cron has it: "0 3 * * *" is 3 o\'clock each day. It is expected to end.',
        check_schedule,
        unset="it always runs",
        metavar="CRON",
        live=True,
    )
    timezone: str | None = option(
        None,
        "The time zone of `schedule`, as in Europe/Berlin.",
        check_text,
        unset="this machine's",
        metavar="ZONE",
        live=True,
    )
    overlap: Overlap = option(
        Overlap.SKIP,
        "When a run is due and the one before it still runs: skip it, queue one, or kill the one before.",
        live=True,
    )
    catch_up: bool = option(
        False,
        "Whether a run is made up for, once, if runs were missed or cut short because no manager ran.",
        live=True,
    )


class RunResult(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"  #: an operator ended it, or the next run took its place
    INTERRUPTED = "interrupted"  #: it was ended with its manager
    UNKNOWN = "unknown"  #: no manager that had started it saw its end


@frozen
class JobRun:
    began_at: datetime
    due_at: datetime | None = None  #: by its schedule; None: a command asked for it
    instance_id: str | None = None  #: None: it is about to be launched
    ended_at: datetime | None = None
    result: RunResult | None = None  #: None: it runs, or is about to
    reason: str | None = None  #: why it did not complete
    skipped: int = 0  #: later runs that were due while it ran, and are not made up for


@frozen
class JobState:
    """What the next manager has to know of a job."""

    last: JobRun | None = None
    schedule: str | None = None  #: the one that the following two belong to, with its time zone
    handled_until: datetime | None = None  #: the moments of the schedule up to here
    waiting: datetime | None = None  #: the run of this moment waits for the end of the present one

    @property
    def completed(self) -> bool:
        return self.last is not None and self.last.result is RunResult.COMPLETED

    @property
    def runs(self) -> bool:
        """Whether a run has begun that is not known to have ended."""
        return self.last is not None and self.last.result is None
