"""What each operation reads and writes, inside a transaction of the caller's."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from attrs import fields

from ..codec import from_json, from_plain, parse_json, to_json
from ..core.moves import JournalPlace
from ..core.stats import counted
from ..errors import InvalidRequest
from ..models import (
    ConnectionEnd,
    ConnectionPeak,
    Event,
    Fact,
    HealthCheck,
    InstanceEnd,
    InstanceRecord,
    JobState,
    JoinSecret,
    NodeRecord,
    RoutingRule,
    ServiceSpec,
    ServiceTotals,
    Token,
    TokenPolicy,
)
from .schema import UnreadableRow
from .store import SERVICES, Kind, Snapshot

T = TypeVar("T")

log = logging.getLogger(__name__)

# Services and rules.


def add(db: sqlite3.Connection, kind: Kind, key: str, thing: ServiceSpec | RoutingRule | Token) -> None:
    if db.execute(f"SELECT 1 FROM {kind.table} WHERE id = ?", (key,)).fetchone():
        raise kind.id_taken(key)
    _check_name(db, kind, key, thing.name)
    db.execute(
        f"INSERT INTO {kind.table} (id, name, version, document) VALUES (?, ?, ?, ?)",
        (key, thing.name, thing.version, to_json(thing)),
    )


def update(db: sqlite3.Connection, kind: Kind, key: str, thing: ServiceSpec | RoutingRule) -> None:
    row = db.execute(f"SELECT version FROM {kind.table} WHERE id = ?", (key,)).fetchone()
    if row is None:
        raise kind.not_found(key)
    if row[0] != thing.version - 1:
        raise kind.stale(thing, row[0])
    _check_name(db, kind, key, thing.name)
    db.execute(
        f"UPDATE {kind.table} SET name = ?, version = ?, document = ? WHERE id = ?",
        (thing.name, thing.version, to_json(thing), key),
    )


def delete(db: sqlite3.Connection, kind: Kind, key: str) -> None:
    if not db.execute(f"DELETE FROM {kind.table} WHERE id = ?", (key,)).rowcount:
        raise kind.not_found(key)


def _check_name(db: sqlite3.Connection, kind: Kind, key: str, name: str) -> None:
    if db.execute(f"SELECT 1 FROM {kind.table} WHERE name = ? AND id != ?", (name, key)).fetchone():
        raise kind.name_taken(name)


# Instances.


def put_instance(db: sqlite3.Connection, record: InstanceRecord) -> None:
    if not db.execute("SELECT 1 FROM services WHERE id = ?", (record.service_id,)).fetchone():
        raise SERVICES.not_found(record.service_id)
    db.execute(
        "INSERT INTO instances (id, service_id, document) VALUES (?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET service_id = excluded.service_id, document = excluded.document",
        (record.instance_id, record.service_id, to_json(record)),
    )


def delete_instance(db: sqlite3.Connection, instance_id: str) -> None:
    db.execute("DELETE FROM instances WHERE id = ?", (instance_id,))


def put_job(db: sqlite3.Connection, service_id: str, state: JobState) -> None:
    if not db.execute("SELECT 1 FROM services WHERE id = ?", (service_id,)).fetchone():
        raise SERVICES.not_found(service_id)
    db.execute("REPLACE INTO jobs (service_id, document) VALUES (?, ?)", (service_id, to_json(state)))


# Nodes.


def put_node(db: sqlite3.Connection, node: NodeRecord) -> None:
    db.execute(
        "INSERT INTO nodes (id, name, document) VALUES (?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, document = excluded.document",
        (node.node_id, node.name, to_json(node)),
    )


def delete_node(db: sqlite3.Connection, node_id: str) -> None:
    db.execute("DELETE FROM nodes WHERE id = ?", (node_id,))


def leave_cluster(db: sqlite3.Connection) -> None:
    """Forgets the nodes, and what runs on them: they are another database's."""
    db.execute("DELETE FROM instances WHERE json_extract(document, '$.node_id') != ''")
    db.execute("DELETE FROM nodes")
    db.execute("DELETE FROM join_secrets")
    db.execute("DELETE FROM journal_places")


def put_journal_place(db: sqlite3.Connection, place: JournalPlace) -> None:
    db.execute(
        "REPLACE INTO journal_places (id, service_id, document) SELECT ?, id, ? FROM services WHERE id = ?",
        (f"{place.service_id}@{place.node_id}", to_json(place), place.service_id),
    )


def put_join_secret(db: sqlite3.Connection, secret: JoinSecret) -> None:
    db.execute(
        "INSERT INTO join_secrets (id, document) VALUES (?, ?)"
        " ON CONFLICT (id) DO UPDATE SET document = excluded.document",
        (secret.digest, to_json(secret)),
    )


def delete_join_secret(db: sqlite3.Connection, digest: str) -> None:
    db.execute("DELETE FROM join_secrets WHERE id = ?", (digest,))


# Reading.

_TOTALS = tuple(attribute.name for attribute in fields(ServiceTotals))
_COLUMNS = ", ".join(_TOTALS)
_DOCUMENTS = ("handshake", "first_byte")  #: of the totals, those that are no numbers


def load(db: sqlite3.Connection) -> Snapshot:
    return Snapshot(
        services=_documents(db, ServiceSpec, "services", "ORDER BY rowid"),
        rules=_documents(db, RoutingRule, "rules", "ORDER BY rowid"),
        instances=_documents(db, InstanceRecord, "instances", "ORDER BY rowid"),
        totals={
            service_id: _totals(service_id, *row)
            for service_id, *row in db.execute(f"SELECT service_id, {_COLUMNS} FROM totals")
        },
        jobs={
            service_id: _job(service_id, document)
            for service_id, document in db.execute("SELECT service_id, document FROM jobs")
        },
        nodes=_documents(db, NodeRecord, "nodes", "ORDER BY rowid"),
        journal_places=_documents(db, JournalPlace, "journal_places", "ORDER BY rowid"),
    )


def _job(service_id: str, document: str) -> JobState:
    try:
        return from_json(document, JobState)
    except InvalidRequest as error:
        raise UnreadableRow("jobs", service_id, error) from error


def _totals(service_id: str, *row: Any) -> ServiceTotals:
    try:
        named = zip(_TOTALS, row, strict=True)
        return from_plain(
            {name: parse_json(value) if name in _DOCUMENTS else value for name, value in named}, ServiceTotals
        )
    except InvalidRequest as error:
        raise UnreadableRow("totals", service_id, error) from error


def tokens(db: sqlite3.Connection) -> tuple[Token, ...]:
    return _documents(db, Token, "tokens", "ORDER BY rowid")


def join_secrets(db: sqlite3.Connection) -> tuple[JoinSecret, ...]:
    return _documents(db, JoinSecret, "join_secrets", "ORDER BY rowid")


def token_policy(db: sqlite3.Connection) -> TokenPolicy:
    row = db.execute("SELECT api, gateway FROM token_policy").fetchone()
    if row is None:
        raise UnreadableRow("token_policy", 1, "it is missing")
    return TokenPolicy(*map(bool, row))


def set_token_policy(db: sqlite3.Connection, policy: TokenPolicy) -> None:
    db.execute("UPDATE token_policy SET api = ?, gateway = ?", (policy.api, policy.gateway))


def health_history(db: sqlite3.Connection, service_id: str, limit: int) -> tuple[HealthCheck, ...]:
    rest = "WHERE service_id = ? ORDER BY id DESC LIMIT ?"
    return _documents(db, HealthCheck, "health_checks", rest, service_id, limit)


def ends(db: sqlite3.Connection, service_id: str, limit: int) -> tuple[InstanceEnd, ...]:
    rest = "WHERE service_id = ? ORDER BY id DESC LIMIT ?"
    return _documents(db, InstanceEnd, "ends", rest, service_id, limit)


def events(db: sqlite3.Connection, after: int, limit: int) -> tuple[Event, ...]:
    return _documents(db, Event, "events", "WHERE id > ? ORDER BY id LIMIT ?", after, limit)


def last_event_id(db: sqlite3.Connection) -> int:
    (last,) = db.execute("SELECT max(id) FROM events").fetchone()
    return last or 0


def _documents(
    db: sqlite3.Connection, kind: type[T], table: str, rest: str, *values: object
) -> tuple[T, ...]:
    def parsed() -> Iterator[T]:
        for key, document in db.execute(f"SELECT id, document FROM {table} {rest}", values):
            try:
                yield from_json(document, kind)
            except InvalidRequest as error:
                raise UnreadableRow(table, key, error) from error

    return tuple(parsed())


# Facts.


def write_facts(db: sqlite3.Connection, facts: Sequence[Fact]) -> int:
    """Returns how many could not be kept."""
    refused = 0
    totals: dict[str, ServiceTotals] = {}
    for fact in facts:
        try:
            _insert(db, fact)
        except (ValueError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError) as error:
            # One value that SQLite or JSON cannot hold must not keep all later ones waiting for ever.
            log.error("a fact cannot be kept: %s: %r", error, fact)
            refused += 1
        else:
            if (service_id := fact.service_id) is not None:
                if service_id not in totals:
                    totals[service_id] = _totals_of(db, service_id)
                totals[service_id] = counted(totals[service_id], fact)
    _write_totals(db, totals.items())
    return refused


def _insert(db: sqlite3.Connection, fact: Fact) -> None:
    match fact:
        case Event():
            db.execute(
                "INSERT INTO events (id, at, document) VALUES (?, ?, ?)",
                (fact.event_id, microseconds(fact.at), to_json(fact)),
            )
        case HealthCheck(checked_at=at):
            _insert_of_service(db, "health_checks", fact, at)
        case InstanceEnd(at=at):
            _insert_of_service(db, "ends", fact, at)
        case ConnectionEnd() | ConnectionPeak():
            pass  # only the totals have them


def _insert_of_service(
    db: sqlite3.Connection, table: str, fact: HealthCheck | InstanceEnd, at: datetime
) -> None:
    db.execute(  # its service may have been deleted since
        f"INSERT INTO {table} (service_id, at, document) SELECT id, ?, ? FROM services WHERE id = ?",
        (microseconds(at), to_json(fact), fact.service_id),
    )


def _totals_of(db: sqlite3.Connection, service_id: str) -> ServiceTotals:
    row = db.execute(f"SELECT {_COLUMNS} FROM totals WHERE service_id = ?", (service_id,)).fetchone()
    return ServiceTotals() if row is None else _totals(service_id, *row)


def _write_totals(db: sqlite3.Connection, totals: Iterable[tuple[str, ServiceTotals]]) -> None:
    db.executemany(
        f"REPLACE INTO totals (service_id, {_COLUMNS})"
        f" SELECT id, {', '.join('?' for _ in _TOTALS)} FROM services WHERE id = ?",
        [(*_row(total), service_id) for service_id, total in totals if total != ServiceTotals()],
    )


def _row(totals: ServiceTotals) -> Iterator[int | float | str]:
    for name in _TOTALS:
        value = getattr(totals, name)
        yield to_json(value) if name in _DOCUMENTS else value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
