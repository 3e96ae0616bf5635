"""Which instances to spare for a while: those that keep failing, and those that have just come back."""

from __future__ import annotations

from collections.abc import Mapping, Set

from attrs import define, frozen


@frozen
class OutlierPolicy:
    """Durations in seconds."""

    failures: int = 3  #: in a row, until an instance is ejected
    ejection_s: float = 5.0  #: the first time; doubling each time
    ejection_max_s: float = 300.0
    warm_s: float = 10.0  #: how long a recovered instance gets less than its weight; 0: not at all
    warm_from: float = 0.1  #: the share of its weight that it begins with


@define
class _Record:
    failures: int = 0
    ejections: int = 0
    until: float = 0.0  #: ejected until then
    warm_since: float | None = None


_NONE: Set[str] = frozenset()
_NO_WEIGHTS: Mapping[str, float] = {}


class Outliers:
    """What went wrong lately, by instance id. The time is passed in: seconds of any clock that only rises."""

    def __init__(self, policy: OutlierPolicy) -> None:
        self._policy = policy
        self._records: dict[str, _Record] = {}

    def failed(self, instance_id: str, now: float) -> None:
        """A try to open a connection there failed."""
        record = self._records.setdefault(instance_id, _Record())
        record.failures += 1
        if record.failures >= self._policy.failures and record.until <= now:
            pause = min(self._policy.ejection_s * 2.0**record.ejections, self._policy.ejection_max_s)
            record.until = record.warm_since = now + pause
            # The next failure ejects again, for longer. Capped, so that the power stays a number.
            record.ejections = min(record.ejections + 1, 32)

    def succeeded(self, instance_id: str, now: float) -> None:
        """A connection was opened there: its failures are forgotten, and its warming goes on."""
        record = self._records.get(instance_id)
        if record is None:
            return
        record.failures = record.ejections = 0
        record.until = min(record.until, now)
        if record.warm_since is None or now - record.warm_since >= self._policy.warm_s:
            del self._records[instance_id]

    def recovered(self, instance_id: str, now: float) -> None:
        """It is routable again, or for the first time."""
        if self._policy.warm_s > 0:
            self._records[instance_id] = _Record(warm_since=now)

    def ejected(self, now: float) -> Set[str]:
        if not self._records:
            return _NONE
        return {name for name, record in self._records.items() if record.until > now}

    def share(self, instance_id: str, now: float) -> float:
        """The part of its weight that it gets now."""
        record = self._records.get(instance_id)
        if record is None or record.warm_since is None or self._policy.warm_s <= 0:
            return 1.0
        progress = max(0.0, now - record.warm_since) / self._policy.warm_s
        return min(1.0, self._policy.warm_from + (1 - self._policy.warm_from) * progress)

    def weights(self, weights: Mapping[str, float], now: float) -> Mapping[str, float]:
        """The weights of those that are being warmed in; `weights` has those of all instances."""
        if not self._records:
            return _NO_WEIGHTS
        found = {}
        for name in tuple(self._records):
            share = self.share(name, now)
            if share < 1 and name in weights:
                found[name] = weights[name] * share
        return found

    def forget(self, instance_id: str) -> None:
        self._records.pop(instance_id, None)
