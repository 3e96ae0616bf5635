"""What a host writes: the changes of many sessions in one transaction, and a session whole. All of it blocks.

Each write names the session's row and the epoch in which it is held, and does nothing where that is old.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

from attrs import define, fields, frozen

from . import schema
from .journal import (
    Accepted,
    Answered,
    Asked,
    Change,
    Frame,
    Kept,
    MayOwn,
    SessionEnded,
    SessionRecord,
    SessionSnapshot,
    Started,
    TurnEnded,
    TurnRecord,
    TurnStatus,
    Used,
)
from .links import HeldLink
from .links import write as write_links
from .reading import named

ROW_BYTES = 64 * 1024  #: of events in a row; a longer one has a row of its own
ROWS_AT_ONCE = 64  #: in a statement
CONTENT = b'"content":'


@define(eq=False)
class Place:
    """Where a session stands in the file, and in which epoch it is held."""

    record: SessionRecord  #: as it was created
    row: int = 0  #: 0: not in it yet
    epoch: int = 1


@frozen
class Released:
    """Any host may take the session up; the last change of its holder."""

    at: float


Work = Sequence[tuple[Place, Sequence[Change | Released]]]

_APART = ("state", "memory", "history", "history_turn")  #: in a table of their own
_COLUMNS = [field.name for field in fields(SessionRecord) if field.name not in _APART]
_INSERT_SESSION = (
    f"INSERT INTO sessions ({', '.join(_COLUMNS)}, holder, epoch)"
    f" VALUES ({', '.join(f':{name}' for name in _COLUMNS)}, :holder, :epoch)"
)
_REPLACE_SESSION = (
    f"UPDATE sessions SET {', '.join(f'{name} = :{name}' for name in _COLUMNS if name != 'name')},"
    " holder = :holder, epoch = :epoch WHERE id = :id"
)
_UPDATE_SESSION = """
UPDATE sessions SET last_used_at = max(last_used_at, ?), last_seq = max(last_seq, ?),
    last_turn = max(last_turn, ?), input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,
    ended_at = ifnull(?, ended_at), end_reason = ifnull(?, end_reason), holder = iif(?, NULL, holder)
WHERE id = ? AND epoch = ?
"""
_KEEP = """
INSERT INTO kept (session, state, memory, history, history_turn) VALUES (?1, ifnull(?2, '{}'), ?3, ?4, ?5)
ON CONFLICT (session) DO UPDATE SET state = ifnull(?2, state), memory = ifnull(?3, memory),
    history = ifnull(?4, history), history_turn = iif(?4 IS NULL, history_turn, ?5)
"""
_PUT_TURN = f"""
INSERT OR REPLACE INTO turns
VALUES ({", ".join("?" * 10)}, ifnull(?, (SELECT answer FROM turns WHERE session = ?1 AND number = ?2)))
"""  # an answer stays: an event may refer to it


@cache
def _insert_frames(rows: int) -> str:
    return (
        "INSERT INTO frames (session, first_seq, last_seq, turn, lines)"
        " SELECT s.id, v.column3, v.column4, v.column5, v.column6"
        f" FROM (VALUES {','.join(['(?,?,?,?,?,?)'] * rows)}) v"
        " CROSS JOIN sessions s ON s.id = v.column1 AND s.epoch = v.column2"
    )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def write(
    db: sqlite3.Connection, holder: str, work: Work, links: Sequence[tuple[HeldLink, str | None]] = ()
) -> tuple[list[Place], list[HeldLink]]:
    """Commits all changes in one transaction. Returns the places and links that others have by now."""
    new = [place for place, _ in work if not place.row]
    others = [(place, changes) for place, changes in work if any(type(c) is not Frame for c in changes)]
    try:
        with transaction(db):
            for place in new:
                place.row = _insert_session(db, place.record, holder, place.epoch)
            lost = [place for place, changes in others if not _write_changes(db, place, changes)]
            complete = _write_frames(db, _all_rows(work))
            lost_links = write_links(db, holder, links)
    except BaseException:  # goes on: what was undone has no row
        for place in new:
            place.row = 0
        raise
    return lost if complete else _lost(db, work), lost_links


def is_of_events(work: Work) -> bool:
    """Whether nothing else is in it, and each of its sessions is in the file."""
    return all(place.row and all(type(change) is Frame for change in changes) for place, changes in work)


def write_events(db: sqlite3.Connection, work: Work) -> list[Place]:
    """Commits changes that are events and nothing else. Returns the places that others have by now."""
    rows = _all_rows(work)
    if len(rows) <= ROWS_AT_ONCE:
        complete = _write_frames(db, rows)  # one statement: a transaction of its own
    else:
        with transaction(db):
            complete = _write_frames(db, rows)
    return [] if complete else _lost(db, work)


def write_whole(
    place: Place,
    snapshot: SessionSnapshot,
    may_hold: Callable[[str], bool],
    db: sqlite3.Connection,
    holder: str,
) -> bool:
    """Writes a session as its copy has it, whatever the file has. False where another holder has it, or where
    it was erased: in a file that was made anew, a place has no row.

    Events that the file has are not written again: what has a number never changes.
    """
    record = snapshot.record
    whole = Place(record, place.row, place.epoch)
    with transaction(db):
        found = db.execute(
            "SELECT id, holder, epoch FROM sessions WHERE session_id = ?", (record.session_id,)
        ).fetchone()
        if found is None:
            if place.row:
                return False
            whole.epoch = place.epoch + 1
            whole.row = _insert_session(db, record, holder, whole.epoch)
        else:
            whole.row, other, epoch = found
            if epoch > place.epoch or (other not in (None, holder) and may_hold(other)):
                return False
            whole.epoch = place.epoch + 1
            values = _columns(record) | {"id": whole.row, "holder": holder, "epoch": whole.epoch}
            db.execute(_REPLACE_SESSION, values)
        _write_change(db, whole.row, Kept(record.state, record.memory, record.history, record.history_turn))
        db.executemany(_PUT_TURN, [_of_turn(whole.row, turn) for turn in snapshot.turns])
        db.execute("DELETE FROM questions WHERE session = ?", (whole.row,))
        for question in snapshot.questions:
            _write_change(db, whole.row, Asked(question))
        (last_seq,) = db.execute(
            "SELECT ifnull(max(last_seq), 0) FROM frames WHERE session = ?", (whole.row,)
        ).fetchone()
        new = [frame for frame in snapshot.frames if frame.seq > last_seq]
        _write_frames(db, list(rows(whole, new)))
    place.row, place.epoch = whole.row, whole.epoch
    return True


def claim(
    db: sqlite3.Connection,
    holder: str,
    session_id: str,
    may_hold: Callable[[str], bool],
    may_own: MayOwn | None = None,
) -> tuple[int, int] | str | None:
    """The row and the epoch of a session that is `holder`'s now, with epoch 0 for one that has ended; or who
    holds it, and may; or None where there is none, or its owner may not have it.
    """
    with transaction(db):
        found = db.execute(
            "SELECT id, owner, holder, epoch, ended_at FROM sessions WHERE session_id = ?", (session_id,)
        ).fetchone()
        if found is None:
            return None
        row, owner, other, epoch, ended_at = found
        if may_own is not None and not may_own(owner):
            return None
        if ended_at is not None:
            return row, 0
        if other not in (None, holder) and may_hold(other):
            return str(other)
        db.execute("UPDATE sessions SET holder = ?, epoch = epoch + 1 WHERE id = ?", (holder, row))
        return row, epoch + 1


def create_named(db: sqlite3.Connection, holder: str, place: Place) -> str | None:
    """Writes a new session, unless one of its owner has its name: returns the id of that."""
    with transaction(db):
        found = named(db, place.record.owner, place.record.name)
        if found is not None:
            return found
        row = _insert_session(db, place.record, holder, place.epoch)
    place.row = row
    return None


def _write_frames(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> bool:
    """Whether all were written: their sessions are held."""
    written = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        written += db.execute(_insert_frames(len(some)), tuple(chain.from_iterable(some))).rowcount
    return written == len(rows)


def _all_rows(work: Work) -> list[tuple[Any, ...]]:
    return [row for place, changes in work for row in rows(place, changes)]


def rows(place: Place, changes: Sequence[Change | Released]) -> Iterator[tuple[Any, ...]]:
    """The events among the changes; consecutive ones of a turn share a row."""
    answers = {it.turn: schema.content_of(it.answer) for it in changes if type(it) is TurnEnded and it.answer}
    lines: list[bytes] = []
    first = last = turn = size = 0
    for change in changes:
        if type(change) is not Frame:
            continue
        line = change.line
        if change.turn in answers:
            line = line.replace(CONTENT + answers[change.turn], CONTENT + schema.ANSWER)
        if lines and (change.seq != last + 1 or change.turn != turn or size + len(line) > ROW_BYTES):
            yield place.row, place.epoch, first, last, turn, b"\n".join(lines)
            lines, size = [], 0
        if not lines:
            first, turn = change.seq, change.turn
        last = change.seq
        size += len(line)
        lines.append(line)
    if lines:
        yield place.row, place.epoch, first, last, turn, b"\n".join(lines)


def _write_changes(db: sqlite3.Connection, place: Place, changes: Sequence[Change | Released]) -> bool:
    """All but the events. False when the session is not held any more: nothing is written."""
    used_at, last_seq, last_turn, tokens_in, tokens_out = 0.0, 0, 0, 0, 0
    ended: SessionEnded | None = None
    released = False
    for change in changes:
        match change:
            case Frame(seq=last_seq):
                pass
            case Accepted(turn):
                used_at, last_turn = turn.accepted_at, turn.number
            case TurnEnded(at=used_at):
                pass
            case Used(input_tokens=more_in, output_tokens=more_out):
                tokens_in, tokens_out = tokens_in + more_in, tokens_out + more_out
            case SessionEnded():
                ended, released, used_at = change, True, change.at
            case Released(at=used_at):
                released = True
    end = (ended.at, ended.reason) if ended is not None else (None, None)
    values = (used_at, last_seq, last_turn, tokens_in, tokens_out, *end, released, place.row, place.epoch)
    if not db.execute(_UPDATE_SESSION, values).rowcount:
        return False
    for change in changes:
        _write_change(db, place.row, change)
    return True


def _write_change(db: sqlite3.Connection, row: int, change: Change | Released) -> None:
    match change:
        case Accepted(turn):
            db.execute(_PUT_TURN, _of_turn(row, turn))
        case Started(turn, attempts, at):
            db.execute(
                "UPDATE turns SET status = ?, attempts = ?, started_at = ? WHERE session = ? AND number = ?",
                (TurnStatus.RUNNING, attempts, at, row, turn),
            )
        case TurnEnded(turn, ended_by, answer, at):
            db.execute(
                "UPDATE turns SET status = ?, ended_by = ?, answer = ?, ended_at = ?"
                " WHERE session = ? AND number = ?",
                (TurnStatus.ENDED, ended_by, answer, at, row, turn),
            )
        case Asked(question):
            db.execute(
                "INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?)",
                (row, question.step_id, question.content, question.asked_at),
            )
        case Answered(step_id):
            db.execute("DELETE FROM questions WHERE session = ? AND step_id = ?", (row, step_id))
        case Kept(state, memory, history, history_turn):
            db.execute(_KEEP, (row, state, memory, history, history_turn))
        case SessionEnded():
            db.execute("DELETE FROM questions WHERE session = ?", (row,))


def _insert_session(db: sqlite3.Connection, record: SessionRecord, holder: str, epoch: int) -> int:
    values = _columns(record) | {"holder": holder, "epoch": epoch}
    if record.name is not None and named(db, record.owner, record.name) is not None:
        values["name"] = None  # another one got it while the journal could not be written
    row = db.execute(_INSERT_SESSION, values).lastrowid
    assert row is not None
    _write_change(db, row, Kept(record.state, record.memory, record.history, record.history_turn))
    return row


def _columns(record: SessionRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _COLUMNS}


def _lost(db: sqlite3.Connection, work: Work) -> list[Place]:
    return [place for place, _ in work if not _is_held(db, place)]


def _is_held(db: sqlite3.Connection, place: Place) -> bool:
    held = "SELECT 1 FROM sessions WHERE id = ? AND epoch = ?"
    return db.execute(held, (place.row, place.epoch)).fetchone() is not None


def _of_turn(row: int, turn: TurnRecord) -> tuple[Any, ...]:
    return (
        row,
        turn.number,
        turn.step_id,
        turn.message,
        turn.accepted_at,
        turn.status,
        turn.attempts,
        turn.started_at,
        turn.ended_at,
        turn.ended_by,
        turn.answer,
    )
