"""What `archive` has of one journal that is an SQLite file: functions of its path, which block.

All of it works whether hosts run or not, and holds them up for no longer than a transaction of their own. An
absent journal has no sessions. What cannot be read raises `StorageError`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StorageError
from ..models.sessions import SessionState
from . import archive, holders, links, reading, schema
from .archive import (
    EVENT_BYTES,
    EVENTS_FOUND,
    LAST_NUMBER,
    ArchiveFigures,
    OpenQuestion,
    Pruned,
    SaidMessage,
    SessionPage,
    SessionSummary,
)
from .journal import Frame, Question, SessionSnapshot, StoredFrame
from .writing import transaction

LOCK_PATIENCE_S = 5.0
AT_ONCE = 50  #: sessions erased in a transaction: hosts wait for it
VACUUM_PAGES = 2000  #: given back to the file system at once


_SUMMARY = """
SELECT id, session_id, owner, name,
    CASE WHEN ended_at IS NOT NULL THEN 'ended'
        WHEN EXISTS (SELECT 1 FROM questions q WHERE q.session = s.id) THEN 'asking'
        WHEN EXISTS (SELECT 1 FROM turns t WHERE t.session = s.id AND t.status <> 'ended') THEN 'running'
        WHEN holder IN (SELECT value FROM json_each(:living)) THEN 'idle'
        ELSE 'hibernated' END AS state,
    iif(holder IN (SELECT value FROM json_each(:living)), holder, NULL),
    last_turn, input_tokens, output_tokens, created_at, last_used_at, ended_at, end_reason
FROM sessions s
"""
_NARROWED = {  # what an index finds, where few are in that state
    SessionState.RUNNING: "AND id IN (SELECT session FROM turns WHERE status <> 'ended')",
    SessionState.ASKING: "AND id IN (SELECT session FROM questions)",
}
_TABLES = ("frames", "turns", "questions", "kept")


def sessions(
    path: Path,
    *,
    state: SessionState | None = None,
    owner: str | None = None,
    text: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> SessionPage:
    """A page of those that fit. `text`: in the name or the id. Raises `InvalidRequest`."""
    before = _place(cursor) if cursor is not None else (float("inf"), 0)
    values = {
        "living": _living(path),
        "at": before[0],
        "row": before[1],
        "state": state,
        "owner": owner,
        "text": text,
        "limit": limit + 1,
    }
    query = (
        f"SELECT * FROM ({_SUMMARY} WHERE (last_used_at, id) < (:at, :row)"
        f" {'AND owner = :owner' if owner is not None else ''} {_NARROWED.get(state, '') if state else ''}"
        " AND (:text IS NULL OR instr(lower(ifnull(name, '')), lower(:text)) OR instr(session_id, :text)))"
        " WHERE :state IS NULL OR state = :state ORDER BY last_used_at DESC, id DESC LIMIT :limit"
    )
    with _open(path) as db:
        rows = db.execute(query, values).fetchall() if db is not None else []
    items = [_summary(row) for row in rows[:limit]]
    more = len(rows) > limit
    return SessionPage(items, items[-1].place if more else None)


def session(path: Path, session_id: str) -> tuple[SessionSummary, SessionSnapshot] | None:
    """One, with its last turns, and without events."""
    with _open(path) as db:
        if db is None:
            return None
        values = {"living": _living(path), "id": session_id}
        row = db.execute(f"{_SUMMARY} WHERE session_id = :id", values).fetchone()
        return None if row is None else (_summary(row), reading.load(db, row[0], with_frames=False))


def events(
    path: Path, session_id: str, since: int = 0, *, max_bytes: int = EVENT_BYTES
) -> Sequence[StoredFrame] | None:
    """Those after the number `since`, the oldest first, as many as fit; None where there is no session."""
    with _open(path) as db:
        row = None if db is None else _row(db, session_id)
        if db is None or row is None:
            return None
        return reading.frames(db, row, min(since + 1, LAST_NUMBER), LAST_NUMBER, max_bytes)


def messages(path: Path, session_id: str, after: int, to: int) -> dict[int, SaidMessage]:
    """What began the turns after the number `after`, up to `to`."""
    with _open(path) as db:
        if db is None:
            return {}
        found = db.execute(
            "SELECT number, step_id, message, accepted_at FROM turns"
            " WHERE session = (SELECT id FROM sessions WHERE session_id = ?) AND number > ? AND number <= ?",
            (session_id, after, to),
        )
        return {number: SaidMessage(*said) for number, *said in found}


def turn_that_runs(path: Path, session_id: str) -> int:
    """Its number; 0 where none does."""
    with _open(path) as db:
        found = (
            db
            and db.execute(
                "SELECT number FROM turns WHERE status = 'running'"
                " AND session = (SELECT id FROM sessions WHERE session_id = ?)",
                (session_id,),
            ).fetchone()
        )
        return int(found[0]) if found else 0


def has_unfinished(path: Path) -> bool:
    """Whether a turn of any session runs or waits."""
    with _open(path) as db:
        query = "SELECT EXISTS (SELECT 1 FROM turns WHERE status <> 'ended')"
        return db is not None and bool(db.execute(query).fetchone()[0])


def turn_of(path: Path, session_id: str, seq: int) -> int:
    """The number of the turn of an event; 0 where it is of none."""
    with _open(path) as db:
        found = (
            db
            and db.execute(
                "SELECT turn FROM frames WHERE session = (SELECT id FROM sessions WHERE session_id = ?)"
                " AND last_seq >= ? ORDER BY last_seq LIMIT 1",
                (session_id, seq),
            ).fetchone()
        )
        return int(found[0]) if found else 0


def events_with(path: Path, session_id: str, text: str, most: int = EVENTS_FOUND) -> Sequence[Frame]:
    """The first of its events that have `text` in their line."""
    wanted = text.encode()
    with _open(path) as db:
        row = None if db is None else _row(db, session_id)
        if db is None or row is None:
            return ()
        return [frame for frame in reading.rows_with(db, row, wanted, most) if wanted in frame.line][:most]


def questions(path: Path) -> Sequence[OpenQuestion]:
    """The oldest first."""
    with _open(path) as db:
        if db is None:
            return ()
        found = db.execute(
            "SELECT session_id, owner, name, iif(holder IN (SELECT value FROM json_each(?)), holder, NULL),"
            " step_id, content, asked_at"
            " FROM questions q JOIN sessions s ON s.id = q.session ORDER BY asked_at",
            (_living(path),),
        )
        return [
            OpenQuestion(session_id, owner, name, _instance(holder), Question(*question))
            for session_id, owner, name, holder, *question in found
        ]


def figures(path: Path) -> ArchiveFigures:
    with _open(path) as db:
        if db is None:
            return ArchiveFigures()
        sessions, questions = (
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("sessions", "questions")
        )
        return ArchiveFigures(sessions, questions, _used_bytes(db))


def erase(path: Path, session_id: str) -> bool:
    """Erases a session and all that was said in it, also where it was written before. Whether there was one.

    A host that holds it loses it at its next write.
    """
    with _open(path) as db:
        row = None if db is None else _row(db, session_id)
        if db is None or row is None:
            return False
        _erase(db, [row])
        _overwrite(db, path)
    return True


def prune(path: Path, *, retention_s: float = 0, max_bytes: int = 0, now: float | None = None) -> Pruned:
    """Erases what was not used for `retention_s`, then the longest unused beyond `max_bytes`; 0: no limit.

    Sessions that a host holds go last, and only for room.
    """
    now = time.time() if now is None else now
    unused: list[str] = []
    for_room: list[str] = []
    with _open(path) as db:
        if db is None:
            return Pruned()
        living = _living(path)
        old = (
            "SELECT id, session_id FROM sessions WHERE last_used_at < :horizon"
            " AND (holder IS NULL OR holder NOT IN (SELECT value FROM json_each(:living)))"
            " ORDER BY last_used_at LIMIT :some"
        )
        values = {"horizon": now - retention_s, "living": living, "some": AT_ONCE}
        while retention_s and (found := db.execute(old, values).fetchall()):
            _erase(db, [row for row, _ in found])
            unused += [session_id for _, session_id in found]
        longest_unused = (
            "SELECT id, session_id FROM sessions ORDER BY holder IS NOT NULL"
            " AND holder IN (SELECT value FROM json_each(?)), last_used_at LIMIT ?"
        )
        while max_bytes and (used := _used_bytes(db)) > max_bytes:
            found = db.execute(longest_unused, (living, AT_ONCE)).fetchall()
            # About as many as it takes, by the average: each look at the size is after a transaction.
            (count,) = db.execute("SELECT count(*) FROM sessions").fetchone()
            found = found[: max(1, (used - max_bytes) * count // used // 2)]
            if not found:
                break
            _erase(db, [row for row, _ in found])
            for_room += [session_id for _, session_id in found]
        if unused or for_room:
            while db.execute("PRAGMA freelist_count").fetchone()[0]:
                db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            _overwrite(db, path)
    return Pruned(tuple(unused), tuple(for_room))


def _erase(db: sqlite3.Connection, rows: Sequence[int]) -> None:
    with transaction(db):
        for table in _TABLES:
            db.executemany(f"DELETE FROM {table} WHERE session = ?", [(row,) for row in rows])
        erased = [
            session_id
            for row in rows
            for (session_id,) in db.execute("DELETE FROM sessions WHERE id = ? RETURNING session_id", (row,))
        ]
        links.forget_with(db, erased)


def _overwrite(db: sqlite3.Connection, path: Path) -> None:
    """What was deleted is overwritten in its pages; the log of earlier pages is emptied here."""
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > give_up_at:
            raise StorageError(
                f"the journal {path} is in use: what was erased is in its log for a while; try again"
            )


def _used_bytes(db: sqlite3.Connection) -> int:
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _row(db: sqlite3.Connection, session_id: str) -> int | None:
    found = db.execute("SELECT id FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if found is None else int(found[0])


def _summary(row: tuple[Any, ...]) -> SessionSummary:
    number, session_id, owner, name, state, holder, *rest = row
    place = f"{rest[-3]!r}:{number}"
    return SessionSummary(session_id, owner, name, SessionState(state), _instance(holder), place, *rest)


def _instance(holder: str | None) -> str | None:
    return None if holder is None else holders.instance_of(holder)


def _living(path: Path) -> str:
    return json.dumps(holders.all_living(path.parent))


def _place(cursor: str) -> tuple[float, int]:
    """Raises `InvalidRequest`."""
    at, row = archive.moment(cursor)
    try:
        place = at, int(row)
    except ValueError:
        place = at, -1
    if not 0 <= place[1] <= LAST_NUMBER:
        raise archive.no_cursor(cursor)
    return place


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection | None]:
    """None for a journal that there is not, yet."""
    try:
        if not path.exists() or not path.stat().st_size:
            yield None
            return
        db = schema.connect(path)
        try:
            db.execute(f"PRAGMA busy_timeout = {int(LOCK_PATIENCE_S * 1000)}")
            db.execute("PRAGMA secure_delete = ON")
            yield db if schema.version_of(db) else None
        finally:
            db.close()
    except schema.Unfit as unfit:
        what = "was written by a newer agentmgr" if str(unfit) == "newer" else "is not a journal"
        raise StorageError(f"{path} {what}: upgrade agentmgr, or move the file away") from unfit
    except (sqlite3.Error, OSError) as error:
        if schema.is_damage(error):
            problem = f"the journal {path} is damaged: its service sets it aside at its start or next use"
            raise StorageError(problem) from error
        raise StorageError(f"the journal {path} cannot be used now: {error}") from error
