"""How long something takes, in a few dozen numbers: percentiles of what was seen lately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

from attrs import Factory, frozen

_FIRST_S = 1e-4
_PER_DOUBLING = 4
_LAST = 20 * _PER_DOUBLING  #: the bucket that begins at 105 s, and has no end

WINDOW = 2000
"""From so many values on, each of them counts half: a bad day last year does not show for ever."""


@frozen
class Latency:
    """A histogram with buckets of fixed width: each ends 19 % above where it begins.

    Whatever is counted, it stays as small as that. It forgets slowly: its percentiles are those of about the
    last `WINDOW` values.
    """

    counts: Mapping[str, int] = Factory(dict)  #: by the number of the bucket; JSON has only strings for keys

    def with_value(self, seconds: float) -> Latency:
        counts = dict(self.counts)
        if sum(counts.values()) >= WINDOW:
            counts = {bucket: count // 2 for bucket, count in counts.items() if count > 1}
        bucket = str(_bucket(seconds))
        counts[bucket] = counts.get(bucket, 0) + 1
        return Latency(counts)

    def quantile(self, share: float) -> float | None:
        """Seconds that `share` (0 to 1) of the values do not exceed; None where there are no values.

        It is at most 19 % over the true one, and never under it, for values from 0.1 ms to 105 s.
        """
        total = sum(self.counts.values())
        if not total:
            return None
        wanted = max(1, math.ceil(share * total))
        buckets = sorted((int(bucket), count) for bucket, count in self.counts.items())
        reached = accumulate(count for _, count in buckets)
        last = next(bucket for (bucket, _), seen in zip(buckets, reached, strict=True) if seen >= wanted)
        return _FIRST_S * 2 ** (last / _PER_DOUBLING)


def _bucket(seconds: float) -> int:
    """The number of the bucket: it ends at 0.1 ms * 2 ** (number / 4), which still belongs to it."""
    if seconds <= _FIRST_S:
        return 0
    return min(_LAST, math.ceil(math.log2(seconds / _FIRST_S) * _PER_DOUBLING - 1e-9))
