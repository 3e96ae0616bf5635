"""The health of an instance, judged by its checks.

The rules:

* One success makes it healthy, from any state: a verdict never depends on the verdict before, only on
  how many checks have failed in a row.
* `unhealthy_threshold` failures in a row make it unhealthy, fewer degraded.
* Unhealthy for longer than `recovery_threshold`, it is overdue for a restart. Only observed time counts: an
  hour in which the manager itself was suspended is not an hour of being unhealthy.
"""

from __future__ import annotations

from attrs import evolve, frozen

from ..models import HealthStatus, ServiceConfig


@frozen
class ProbeResult:
    """The result of one check. A failed probe is a result too, never an exception."""

    ok: bool
    latency_s: float | None = None
    reason: str | None = None  #: why it failed, or the agent's own words on its state
    inconclusive: bool = False  #: it was never asked; no verdict follows
    degraded: bool = False  #: the agent answered, and says it is not at its best
    journal_degraded: bool = False  #: its host cannot keep its sessions just now
    said: str | None = None  #: a remark of the agent's host, which is well all the same
    status: int | None = None  #: of its HTTP answer; 101: it speaks WebSocket
    sessions: int | None = None  #: conversations in the memory of an agent's host; None: it did not say
    quiet_s: float | None = None  #: for how long a host had no connection and no turn; None: it did not say
    advice: str | None = None  #: what its owner may set, where the probe may have asked the wrong thing


@frozen
class Vitals:
    """The verdict over all checks so far."""

    status: HealthStatus = HealthStatus.UNKNOWN
    failures: int = 0  #: in a row
    unhealthy_for_s: float = 0.0  #: watched time since the verdict turned
    last_check: float | None = None  #: monotonic

    def overdue(self, config: ServiceConfig) -> bool:
        return self.status is HealthStatus.UNHEALTHY and self.unhealthy_for_s > config.recovery_threshold


def judge(vitals: Vitals, result: ProbeResult, config: ServiceConfig, *, now: float, gap_s: float) -> Vitals:
    """The verdict after one more check.

    `now` is monotonic, in seconds. `gap_s` is the longest time between two checks that still counts as
    watched.
    """
    if result.inconclusive:
        return evolve(vitals, last_check=now)
    if result.ok:
        return Vitals(HealthStatus.DEGRADED if result.degraded else HealthStatus.HEALTHY, last_check=now)
    failures = vitals.failures + 1
    if failures < config.unhealthy_threshold:
        return Vitals(HealthStatus.DEGRADED, failures, last_check=now)
    unhealthy_for_s = 0.0
    if vitals.status is HealthStatus.UNHEALTHY and vitals.last_check is not None:
        unhealthy_for_s = vitals.unhealthy_for_s + min(now - vitals.last_check, gap_s)
    return Vitals(HealthStatus.UNHEALTHY, failures, unhealthy_for_s, now)
