"""When an instance is checked, and what its checks have shown since it was last ready."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ..core.health import ProbeResult, Vitals, judge
from ..models import HealthStatus, ServiceConfig

_JITTER = 0.1  #: as a fraction of the check interval, so that instances are not all checked at once
_TOGETHER = 1 / 40
"""As a fraction of the check interval: checks due that close together run at once, for two thirds of the CPU
(measured)."""


class HealthWatch:
    def __init__(self, config: ServiceConfig, default_interval_s: float, random: Callable[[], float]) -> None:
        """`random`: from [0, 1)."""
        self.vitals = Vitals()
        self._config, self._random = config, random
        self._interval_s = config.health_check_interval or default_interval_s

    def begin(self) -> None:
        """Forgets earlier checks: the instance has just shown that it is ready."""
        self.vitals = Vitals(HealthStatus.HEALTHY, last_check=trio.current_time())

    async def next_check(self) -> None:
        """Returns when the next regular check is due."""
        due = trio.current_time() + self._interval_s * (1 - _JITTER + 2 * _JITTER * self._random())
        together_s = self._interval_s * _TOGETHER
        await trio.sleep_until(math.ceil(due / together_s) * together_s)

    def judge(self, result: ProbeResult) -> None:
        """Adds the result of one more check to `vitals`."""
        gap_s = 2 * self._interval_s + self._config.health_check_timeout
        self.vitals = judge(self.vitals, result, self._config, now=trio.current_time(), gap_s=gap_s)

    @property
    def overdue(self) -> bool:
        """Whether it has been unhealthy for longer than `recovery_threshold`."""
        return self.vitals.overdue(self._config)
