"""How often something took how long, since this process started: what Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From what a hop on this machine takes to the gateway's own deadlines."""


class Histogram:
    """Counts values by upper bound. As cheap as a search among a dozen numbers."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, and how many values did not exceed it; the last bound is infinite."""
        count = 0
        for bound, here in zip((*self._bounds_s, float("inf")), self._counts, strict=True):
            count += here
            yield bound, count
