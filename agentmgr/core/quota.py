"""How much one client address may ask for."""

from __future__ import annotations

from collections import OrderedDict


class RateLimit:
    """A token bucket for each address: `rate` a second, and a second's worth (one at least) at once.

    The time is passed in. Addresses that were not heard of for longest are forgotten when there are many:
    their buckets are full again by then, unless a flood comes from more addresses than that.
    """

    def __init__(self, rate: float, max_addresses: int = 65_536) -> None:
        self._rate = rate
        self._burst = max(1.0, rate)
        self._max_addresses = max_addresses
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, at that time

    def allows(self, address: str, now: float) -> bool:
        """Takes a token, if there is one. A rate of 0 allows everything."""
        if not self._rate:
            return True
        tokens, then = self._buckets.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[address] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)
        return allowed
