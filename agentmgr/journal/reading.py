"""What is read of a session. All of it blocks."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

from . import schema
from .journal import (
    FRAME_BYTES_LOADED,
    FRAMES_LOADED,
    TURNS_LOADED,
    Frame,
    Question,
    SessionRecord,
    SessionSnapshot,
    StoredFrame,
    TurnRecord,
    TurnStatus,
)

ROWS_READ = 4096  #: at once
SMALL_ROW_BYTES = 64  #: most have more: not many more rows are looked at than fit
TURN_BYTES_LOADED = 4 * 2**20  #: characters, of messages and answers; `agent.limits.HISTORY_BYTES` is less

_RECORD = """
SELECT session_id, owner, created_at, last_used_at, name,
    max(last_seq, ifnull((SELECT max(f.last_seq) FROM frames f WHERE f.session = s.id), 0)), last_turn,
    ifnull(state, '{}'), memory, history, ifnull(history_turn, 0),
    input_tokens, output_tokens, ended_at, end_reason
FROM sessions s LEFT JOIN kept ON kept.session = s.id WHERE s.id = ?
"""
_TURNS = """
SELECT number, step_id, message, accepted_at, status, attempts, started_at, ended_at, ended_by, answer
FROM turns WHERE session = ? ORDER BY number DESC LIMIT ?
"""
_ANSWER = "SELECT answer FROM turns WHERE session = ? AND number = ?"
# One value, not a row after another: between two, a busy thread of the interpreter may take it for long.
# The order within is that of the rows, which the index gives.
_PACKED = """
SELECT CAST(group_concat(turn || ' ' || first_seq || ' ' || last_seq || char(10) || lines, char(10)) AS BLOB)
FROM (SELECT * FROM ({rows}) WHERE bytes - length(lines) < :bytes OR bytes = length(lines) ORDER BY last_seq)
"""
_NEWEST = _PACKED.format(
    rows="""
    SELECT turn, first_seq, last_seq, lines, sum(length(lines)) OVER (ORDER BY last_seq DESC) AS bytes
    FROM frames WHERE session = :session AND last_seq > :after
    """
)
_FROM = _PACKED.format(
    rows="""
    SELECT turn, first_seq, last_seq, lines, sum(length(lines)) OVER (ORDER BY last_seq) AS bytes
    FROM (SELECT * FROM frames WHERE session = :session AND last_seq >= :first AND first_seq <= :last
        ORDER BY last_seq LIMIT :rows)
    """
)


class Erased(OSError):
    """Between two looks at it."""


def named(db: sqlite3.Connection, owner: str | None, name: str | None) -> str | None:
    """The id of the owner's session of that name."""
    found = db.execute(
        "SELECT session_id FROM sessions WHERE ifnull(owner, '') = ifnull(?, '') AND name = ?"
        " AND ended_at IS NULL",
        (owner, name),
    ).fetchone()
    return None if found is None else str(found[0])


def load(db: sqlite3.Connection, row: int, *, with_frames: bool = True) -> SessionSnapshot:
    """The session as far as `Held.loaded` has it. Raises `Erased`."""
    found = db.execute(_RECORD, (row,)).fetchone()
    if found is None:
        raise Erased(row)
    record = SessionRecord(*found)
    turns: list[TurnRecord] = []
    size = 0
    for number, step_id, message, accepted_at, status, *rest in db.execute(_TURNS, (row, TURNS_LOADED)):
        turn = TurnRecord(number, step_id, message, accepted_at, TurnStatus(status), *rest)
        size += len(message) + len(turn.answer or "")
        if size > TURN_BYTES_LOADED and turn.status is TurnStatus.ENDED:
            break
        turns.append(turn)
    values = {"session": row, "after": record.last_seq - FRAMES_LOADED, "bytes": FRAME_BYTES_LOADED}
    newest = list(_unpacked(db.execute(_NEWEST, values).fetchone()[0])) if with_frames else []
    frames = list(_whole(db, row, reversed(newest[-FRAMES_LOADED:]), FRAME_BYTES_LOADED))[::-1]
    questions = db.execute("SELECT step_id, content, asked_at FROM questions WHERE session = ?", (row,))
    return SessionSnapshot(record, turns[::-1], frames, tuple(Question(*found) for found in questions))


def frames(db: sqlite3.Connection, row: int, first: int, last: int, max_bytes: int) -> Sequence[StoredFrame]:
    """See `Held.frames`."""
    rows = min(ROWS_READ, max_bytes // SMALL_ROW_BYTES + 1)
    values = {"session": row, "first": first, "last": last, "bytes": max_bytes, "rows": rows}
    asked = (it for it in _unpacked(db.execute(_FROM, values).fetchone()[0]) if first <= it.seq <= last)
    found = list(_whole(db, row, asked, max_bytes))
    steps = {
        turn: db.execute("SELECT step_id FROM turns WHERE session = ? AND number = ?", (row, turn)).fetchone()
        for turn in {frame.turn for frame in found}
    }
    return [StoredFrame(f.seq, step[0] if (step := steps[f.turn]) else None, f.line, f.turn) for f in found]


def rows_with(db: sqlite3.Connection, row: int, text: bytes, most: int) -> Iterator[Frame]:
    """All events of the first rows that have `text` in them."""
    found = db.execute(
        "SELECT turn, first_seq, last_seq, lines FROM frames WHERE session = ? AND instr(lines, ?)"
        " ORDER BY last_seq LIMIT ?",
        (row, text, most),
    )
    for turn, first, last, lines in found.fetchall():
        row_of = map(Frame, range(first, last + 1), repeat(turn), lines.split(b"\n"))
        yield from _whole(db, row, row_of, sys.maxsize)


def unfinished(db: sqlite3.Connection) -> list[tuple[str, str | None]]:
    """The sessions with turns that have not ended, and their holders."""
    return db.execute(
        "SELECT session_id, holder FROM sessions WHERE ended_at IS NULL"
        f" AND id IN (SELECT session FROM turns WHERE status <> '{TurnStatus.ENDED}')"
    ).fetchall()


def _whole(db: sqlite3.Connection, row: int, frames: Iterable[Frame], most: int) -> Iterator[Frame]:
    """With the answers that they refer to, as many as fit, at least one."""
    size = 0
    for frame in frames:
        line = frame.line
        if schema.ANSWER in line:
            answer = db.execute(_ANSWER, (row, frame.turn)).fetchone()
            line = line.replace(schema.ANSWER, schema.content_of(answer and answer[0]))
        if size and size + len(line) > most:
            return
        size += len(line)
        yield frame if line is frame.line else Frame(frame.seq, frame.turn, line)


def _unpacked(packed: bytes | None) -> Iterator[Frame]:
    lines = iter(packed.split(b"\n") if packed else ())
    for head in lines:
        turn, first, last = map(int, head.split())
        for seq in range(first, last + 1):
            yield Frame(seq, turn, next(lines))
