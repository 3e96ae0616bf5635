"""Jobs: commands that end by themselves, once or by a schedule."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from attrs import frozen


class RunResult(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"  #: an operator ended it, or the next run took its place
    UNKNOWN = "unknown"  #: it ended while no manager ran


@frozen
class JobRun:
    began_at: datetime
    ended_at: datetime | None = None
    result: RunResult | None = None  #: None: it runs, or is about to
    reason: str | None = None  #: why it failed


@frozen
class JobState:
    """What the next manager has to know of a job."""

    last: JobRun | None = None

    @property
    def completed(self) -> bool:
        return self.last is not None and self.last.result is RunResult.COMPLETED
