"""Keeps the histories within their limits, a little with each batch.

Finding the rows beyond a limit walks along an index, so it is done only when a tenth of the limit has been
added since the last time: the cost per row stays flat, however many there are.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..models import Event, Fact, HealthCheck, InstanceEnd
from .store import HistoryLimits
from .tables import microseconds

AGED_ROWS_AT_ONCE = 2000
"""A user's write may have to wait until they are deleted."""


class Pruner:
    def __init__(self, limits: HistoryLimits) -> None:
        self._limits = limits
        self._added: dict[tuple[str, str | None], int] = {}  # by table and service, since last pruned

    def by_count(self, db: sqlite3.Connection, facts: Sequence[Fact]) -> None:
        """Deletes what exceeds the limits now that `facts` have been written."""
        shelved = (fact for fact in facts if isinstance(fact, Event | HealthCheck | InstanceEnd))
        for (table, limit, service_id), number in Counter(map(self._shelf, shelved)).items():
            # What an earlier run left is not known: the first time always prunes.
            added = self._added.get((table, service_id), limit) + number
            if added * 10 >= limit:
                _delete_beyond(db, table, service_id, limit)
                added = 0
            self._added[table, service_id] = added

    def by_age(self, db: sqlite3.Connection, now: datetime) -> None:
        """Deletes some of what is too old."""
        horizon = microseconds(now - timedelta(seconds=self._limits.max_age_s))
        for table in ("health_checks", "events"):
            # Rows stand in the order of time, so the oldest are the first.
            db.execute(
                f"DELETE FROM {table} WHERE id IN"
                f" (SELECT id FROM (SELECT id, at FROM {table} ORDER BY id LIMIT ?) WHERE at < ?)",
                (AGED_ROWS_AT_ONCE, horizon),
            )

    def forget(self, service_id: str) -> None:
        self._added = {key: added for key, added in self._added.items() if key[1] != service_id}

    def _shelf(self, fact: Event | HealthCheck | InstanceEnd) -> tuple[str, int, str | None]:
        match fact:
            case Event():
                return "events", self._limits.events, None
            case HealthCheck():
                return "health_checks", self._limits.health_checks, fact.service_id
            case InstanceEnd():
                return "ends", self._limits.ends, fact.service_id


def _delete_beyond(db: sqlite3.Connection, table: str, service_id: str | None, limit: int) -> None:
    where = "service_id = :service" if service_id is not None else "TRUE"
    db.execute(
        f"DELETE FROM {table} WHERE {where} AND id <="
        f" (SELECT id FROM {table} WHERE {where} ORDER BY id DESC LIMIT 1 OFFSET :limit)",
        {"service": service_id, "limit": limit},
    )
