"""What each service did in each minute of the last day: read and written as small numbers."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping

from ..models import MinuteFigures

KEPT_MINUTES = 24 * 60


def add(db: sqlite3.Connection, minute: int, figures: Mapping[str, MinuteFigures]) -> None:
    """Adds a minute, and deletes those that are a day old. Services that are not there are left out."""
    db.executemany(
        "INSERT OR IGNORE INTO measured (service_id) SELECT id FROM services WHERE id = ?"
        " AND id NOT IN (SELECT service_id FROM measured)",
        [(service_id,) for service_id in figures],
    )
    numbers = dict(db.execute("SELECT service_id, number FROM measured"))
    db.executemany(
        "INSERT OR REPLACE INTO minutes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (minute, numbers[service_id], *_packed(one))
            for service_id, one in figures.items()
            if service_id in numbers
        ],
    )
    db.execute("DELETE FROM minutes WHERE minute <= ?", (minute - KEPT_MINUTES,))


def read(
    db: sqlite3.Connection, service_ids: Collection[str], first: int, last: int
) -> dict[str, dict[int, MinuteFigures]]:
    """By service and minute, of the minutes from `first` to `last`; each is found by its key."""
    found: dict[str, dict[int, MinuteFigures]] = {}
    for service_id in service_ids:
        rows = db.execute(
            "WITH RECURSIVE wanted (minute) AS"
            " (SELECT :first UNION ALL SELECT minute + 1 FROM wanted WHERE minute < :last)"
            " SELECT m.* FROM measured s, wanted w CROSS JOIN minutes m"
            " ON m.minute = w.minute AND m.number = s.number WHERE s.service_id = :service",
            {"first": first, "last": last, "service": service_id},
        )
        found[service_id] = {minute: _unpacked(*rest) for minute, _, *rest in rows}
    return found


def _packed(one: MinuteFigures) -> tuple[int | None, ...]:
    return (
        one.connections,
        one.sessions,
        _times(one.cpu, 1000),
        _times(one.memory_bytes, 1 / 1024),
        _times(one.first_byte_p50_s, 1e6),
        _times(one.first_byte_p95_s, 1e6),
        one.restarts,
    )


def _unpacked(
    connections: int,
    sessions: int | None,
    cpu: int | None,
    memory: int | None,
    first_byte_50: int | None,
    first_byte_95: int | None,
    restarts: int,
) -> MinuteFigures:
    return MinuteFigures(
        connections=connections,
        sessions=sessions,
        cpu=None if cpu is None else cpu / 1000,
        memory_bytes=None if memory is None else memory * 1024,
        first_byte_p50_s=None if first_byte_50 is None else first_byte_50 / 1e6,
        first_byte_p95_s=None if first_byte_95 is None else first_byte_95 / 1e6,
        restarts=restarts,
    )


def _times(value: float | None, factor: float) -> int | None:
    return None if value is None else round(value * factor)
