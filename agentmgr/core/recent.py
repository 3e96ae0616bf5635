"""What was counted lately, by minute. The minute is passed in: whole minutes since 1970."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from attrs import define, field

from ..models import Latency

_NOTHING = Latency()


def minute_of(moment: datetime) -> int:
    return int(moment.timestamp()) // 60


@define
class RecentLatency:
    """How long something took, by a key, in the minute under way and in the one before it."""

    _minute: int = 0
    _now: dict[str, Latency] = field(factory=dict)
    _before: dict[str, Latency] = field(factory=dict)

    def observe(self, key: str, seconds: float, minute: int) -> None:
        self._turn(minute)
        self._now[key] = self._now.get(key, _NOTHING).with_value(seconds)

    def last(self, key: str, minute: int) -> Latency:
        """Of the last one to two minutes."""
        self._turn(minute)
        now, before = self._now.get(key, _NOTHING), self._before.get(key, _NOTHING)
        return now.plus(before) if before.counts else now

    def before(self, key: str, minute: int) -> Latency:
        """Of the minute before this one."""
        self._turn(minute)
        return self._before.get(key, _NOTHING)

    def _turn(self, minute: int) -> None:
        if minute != self._minute:
            self._before = self._now if minute == self._minute + 1 else {}
            self._minute, self._now = minute, {}


@define
class HourlyCount:
    """How often something happened in the last hour, by a name."""

    _minutes: dict[int, Counter[str | None]] = field(factory=dict)

    def add(self, name: str | None, happened: int, minute: int) -> None:
        """`happened`: in which minute; what is older than an hour is not counted."""
        for old in [known for known in self._minutes if known <= minute - 60]:
            del self._minutes[old]
        if happened > minute - 60:
            self._minutes.setdefault(happened, Counter())[name] += 1

    def totals(self, minute: int) -> Counter[str | None]:
        recent = (counts for at, counts in self._minutes.items() if at > minute - 60)
        return sum(recent, Counter[str | None]())
