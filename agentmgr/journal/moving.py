"""A journal's file moves to another machine: it is copied there, and put into the journal that is there.

No host has it open where it leaves: the manager sees to that. Where it goes, hosts write on meanwhile: a
session comes in one transaction, and one that is there already is not touched. So each step may be done
again.

A session's id names the machine that it was begun on, and the generation of the journal there, which is
raised when that has moved away: so what is begun there later is known from what has left (`core.moves`). All
of it blocks.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from ..errors import StorageError
from ..replacing import replace
from . import copies, schema

log = logging.getLogger(__name__)

_BATCH_BYTES = 4 * 2**20  #: of events, in one transaction: hosts there wait for about 20 ms
_BATCH_SESSIONS = 200
_PAUSE_S = 0.005  #: between two transactions, in which hosts commit what they have
_LOCK_MS = 5000
_GENERATION = re.compile(r"[0-9]{1,9}")

_SIZES = """
SELECT id, session_id, (SELECT ifnull(sum(length(lines)), 0) FROM frames WHERE session = s.id)
FROM leaving.sessions s ORDER BY id
"""
_COLUMNS = """session_id, owner, created_at, last_used_at, last_seq, last_turn, input_tokens, output_tokens,
    ended_at, end_reason"""
_SESSION = f"""
INSERT INTO sessions ({_COLUMNS}, name, holder, epoch)
SELECT {_COLUMNS}, iif(:keeps_name, name, NULL), NULL, epoch + 1 FROM leaving.sessions WHERE id = :there
ON CONFLICT (session_id) DO NOTHING
"""
_NAME_IS_TAKEN = """
SELECT 1 FROM leaving.sessions l
JOIN sessions s ON ifnull(s.owner, '') = ifnull(l.owner, '') AND s.name = l.name
WHERE l.id = :there AND l.ended_at IS NULL AND s.ended_at IS NULL AND s.session_id <> l.session_id
"""
_OF_A_SESSION = (
    "INSERT INTO kept SELECT :here, state, memory, history, history_turn FROM leaving.kept"
    " WHERE session = :there",
    "INSERT INTO turns SELECT :here, number, step_id, message, accepted_at, status, attempts, started_at,"
    " ended_at, ended_by, answer FROM leaving.turns WHERE session = :there",
    "INSERT INTO frames (session, first_seq, last_seq, turn, lines) SELECT :here, first_seq, last_seq, turn,"
    " lines FROM leaving.frames WHERE session = :there ORDER BY last_seq",
    "INSERT INTO questions SELECT :here, step_id, content, asked_at FROM leaving.questions"
    " WHERE session = :there",
)


def copy(path: Path, destination: Path) -> int:
    """Makes a copy of the journal, unless there is one; returns its size, 0 where the journal has no session.

    Raises `StorageError`.
    """
    try:
        return destination.stat().st_size
    except FileNotFoundError:
        pass
    try:
        if not path.exists():
            return 0
        with closing(schema.connect(path)) as db:
            if not schema.version_of(db) or not db.execute("SELECT 1 FROM sessions LIMIT 1").fetchone():
                return 0
        partial = destination.with_name(f"{destination.name}.partial")
        partial.unlink(missing_ok=True)
        copies.copy_one(path, partial)
        partial.rename(destination)
        return destination.stat().st_size
    except schema.Unfit as unfit:
        raise StorageError(f"{path} is not a journal of this version of agentmgr") from unfit
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"the journal {path} cannot be copied: {error}") from error


def put_in(path: Path, arrived: Path) -> int:
    """Puts the sessions of a copy into the journal at `path`, which is made when it is absent. Returns how
    many have come. A copy that is damaged is removed. Raises `StorageError`.
    """
    try:
        _check(arrived)
        schema.open_file(path).close()
        with closing(schema.connect(path)) as db:
            db.execute(f"PRAGMA busy_timeout = {_LOCK_MS}")
            db.execute("PRAGMA wal_autocheckpoint = 1000")
            db.execute("ATTACH ? AS leaving", (_read_only(arrived),))
            return _put_all(db)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"sessions cannot be put into the journal {path}: {error}") from error


def _check(arrived: Path) -> None:
    problem: object
    with closing(sqlite3.connect(_read_only(arrived), uri=True)) as db:
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError:  # of the disk, or there is none
            raise
        except sqlite3.DatabaseError as error:
            version, problem = schema.VERSION, error
    if problem != "ok":
        arrived.unlink(missing_ok=True)
        raise StorageError(f"the copy {arrived} cannot be read: {problem}")
    if version != schema.VERSION:
        raise StorageError(
            f"the copy {arrived} cannot be read: it is of version {version}, not {schema.VERSION}"
        )


def _read_only(file: Path) -> str:
    return f"{file.absolute().as_uri()}?mode=ro"


def _put_all(db: sqlite3.Connection) -> int:
    count = sessions = size = 0
    db.execute("BEGIN IMMEDIATE")
    for there, session_id, length in db.execute(_SIZES).fetchall():
        if sessions and (size + length > _BATCH_BYTES or sessions >= _BATCH_SESSIONS):
            db.execute("COMMIT")
            time.sleep(_PAUSE_S)
            db.execute("BEGIN IMMEDIATE")
            sessions = size = 0
        count += _put(db, there, session_id)
        sessions, size = sessions + 1, size + length
    db.execute("COMMIT")
    return count


def _put(db: sqlite3.Connection, there: int, session_id: str) -> bool:
    """Whether it was not here already."""
    taken = db.execute(_NAME_IS_TAKEN, {"there": there}).fetchone() is not None
    found = db.execute(_SESSION, {"there": there, "keeps_name": not taken})
    if not found.rowcount:
        return False
    if taken:
        log.warning("session %s… has lost its name: another one here has it", session_id[:12])
    values = {"here": found.lastrowid, "there": there}
    for statement in _OF_A_SESSION:
        db.execute(statement, {key: value for key, value in values.items() if f":{key}" in statement})
    return True


def generation_of(path: Path) -> int:
    """Of the journal at `path`: how often one has moved away from there."""
    try:
        text = _generation_file(path).read_text("ascii", "replace").strip()
    except OSError:  # mostly there is none
        return 0
    return int(text) if _GENERATION.fullmatch(text) else 0


def begin_generation(path: Path, number: int) -> None:
    """What is begun there from now on is of this generation. Raises `StorageError`."""
    file = _generation_file(path)
    try:
        if number:
            os.makedirs(path.parent, mode=0o700, exist_ok=True)
            replace(file, str(number).encode(), lasting=True)
        else:
            with suppress(FileNotFoundError):
                file.unlink()
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}") from error


def _generation_file(path: Path) -> Path:
    return path.with_suffix(".generation")
