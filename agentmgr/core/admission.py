"""Whether one more client may come in: `Seats` of instances, and the rate at which one address may ask.

Seats are counts of connections per instance against `max_sessions`, taken and given back in one step each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType

from .routing import Backend


class Seats:
    """How many connections each instance has or is about to have.

    A seat is taken before the instance is dialled, in one step with the check: that is what makes
    `max_sessions` exact under any concurrency.
    """

    def __init__(
        self,
        *,
        vacated: Callable[[str], None] | None = None,
        asked: Callable[[], None] | None = None,
        changed: Callable[[str], None] | None = None,
    ) -> None:
        """`vacated` is called with an instance whose last seat was given back, `asked` as a client waits,
        `changed` with an instance at which `take` or `give_back` have changed how many are taken.
        """
        self._vacated, self._asked, self._changed = vacated, asked, changed
        self._taken: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._full: set[str] = set()
        self._on_hold = False

    @property
    def taken(self) -> Mapping[str, int]:
        """Seats taken by instance id; an instance with none is absent."""
        return MappingProxyType(self._taken)

    @property
    def full(self) -> Set[str]:
        """The ids of those that have no seat left."""
        return self._full

    def set_limit(self, instance_id: str, max_sessions: int) -> None:
        """0 means no limit. Connections above a lowered limit stay; new ones wait until they are below it."""
        if max_sessions:
            self._limits[instance_id] = max_sessions
        else:
            self._limits.pop(instance_id, None)
        self._judge(instance_id)

    def hold(self, on: bool) -> None:
        """While on, no limited instance has a seat: there may be connections that are not counted yet."""
        self._on_hold = on
        for name in self._limits:
            self._judge(name)

    def take(self, backend: Backend) -> bool:
        """Takes a seat; raises `ValueError` when there is none."""
        name = backend.instance_id
        if name in self._full:
            raise ValueError(f"instance {name} has no seat left")
        self.add(name)
        if self._changed is not None:
            self._changed(name)
        return True

    def add(self, instance_id: str) -> None:
        """Counts a connection that exists, whatever the limit."""
        self._taken[instance_id] = self._taken.get(instance_id, 0) + 1
        self._judge(instance_id)

    def remove(self, instance_id: str) -> None:
        """Takes back `add`. Raises `ValueError` when there is none."""
        remove_one(self._taken, instance_id)
        self._judge(instance_id)
        if self._vacated is not None and instance_id not in self._taken:
            self._vacated(instance_id)

    def give_back(self, instance_id: str) -> bool:
        """Whether the next client can have it. Raises `ValueError` when none was taken."""
        self.remove(instance_id)
        if self._changed is not None:
            self._changed(instance_id)
        return instance_id not in self._full

    def ask(self, ticket: int, instance_ids: Sequence[str]) -> None:
        """The client with this ticket waits for a seat at one of these: other workers are asked, if there are
        any.
        """
        if self._asked is not None:
            self._asked()

    def withdraw(self, ticket: int) -> None:
        """Takes the question back."""

    def _judge(self, instance_id: str) -> None:
        limit = self._limits.get(instance_id)
        if limit is not None and (self._on_hold or self._taken.get(instance_id, 0) >= limit):
            self._full.add(instance_id)
        else:
            self._full.discard(instance_id)


def remove_one(counts: dict[str, int], name: str) -> None:
    """Takes one off the count, and drops the name at zero. Raises `ValueError` when it had none."""
    left = counts.get(name, 0) - 1
    if left < 0:
        raise ValueError(f"{name} has no connection")
    if left:
        counts[name] = left
    else:
        del counts[name]


class RateLimit:
    """A token bucket for each address: `rate` a second, and a second's worth (one at least) at once.

    The time is passed in. When there are many addresses, the least recent ones are forgotten:
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
