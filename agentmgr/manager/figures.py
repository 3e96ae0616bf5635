"""What a manager has measured since it started; `GET /metrics` shows it."""

from __future__ import annotations

from collections import Counter

import trio
from attrs import field, frozen

from ..core.histogram import Histogram
from ..models import Connection, ConnectionEnd, HealthCheck

_LAG_SAMPLE_S = 0.5


@frozen
class Figures:
    handshakes: Histogram = field(factory=Histogram)
    first_bytes: Histogram = field(factory=Histogram)
    checks: Histogram = field(factory=Histogram)
    loop_lag: Histogram = field(factory=Histogram)
    checks_failed: Counter[bool] = field(factory=Counter)  #: by whether they did
    refusals: Counter[str] = field(factory=Counter)  #: by their code

    def connection_opened(self, connection: Connection) -> None:
        if connection.handshake_s is not None:
            self.handshakes.observe(connection.handshake_s)

    def connection_closed(self, end: ConnectionEnd) -> None:
        if end.first_byte_s is not None:
            self.first_bytes.observe(end.first_byte_s)

    def client_refused(self, code: str) -> None:
        self.refusals[code] += 1

    def health_checked(self, check: HealthCheck) -> None:
        self.checks_failed[not check.ok] += 1
        if check.latency_s is not None:
            self.checks.observe(check.latency_s)

    async def watch_loop(self) -> None:
        """Measures how late a task of this process wakes up, until cancelled."""
        while True:
            due = trio.current_time() + _LAG_SAMPLE_S
            await trio.sleep_until(due)
            self.loop_lag.observe(trio.current_time() - due)
