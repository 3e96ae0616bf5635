"""The file of a journal: its tables, and how it is opened.

Nothing here writes to a file that is damaged, of a newer version or not ours: it is set aside under another
name, with what SQLite keeps beside it, and a new one begins.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

from ..process.locks import lock
from . import links

log = logging.getLogger(__name__)

APPLICATION_ID = 0x61676D6A  #: `agmj`, in the file's header
VERSION = 1
LOCK_PIECE_MS = 100  #: a transaction waits for another process's so long at once
SMALLEST_PAGE_BYTES = 512
LOG_PAGES = 8000
"""32 MiB: where the log is longer, commits wait until it is copied into the file. A host has most of it
copied beside its commits before."""

TABLES = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never that of one which was erased
    session_id TEXT NOT NULL UNIQUE,
    owner TEXT,
    name TEXT,
    created_at REAL NOT NULL,
    last_used_at REAL NOT NULL,
    holder TEXT, -- NULL: any host may take it up
    epoch INTEGER NOT NULL, -- raised by each claim
    last_seq INTEGER NOT NULL, -- at the last change that was no event; the frames may be further
    last_turn INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    ended_at REAL,
    end_reason TEXT
) STRICT;
CREATE INDEX sessions_by_use ON sessions (last_used_at, id);
CREATE INDEX sessions_by_owner ON sessions (owner, last_used_at, id) WHERE owner IS NOT NULL;
CREATE UNIQUE INDEX sessions_by_name ON sessions (ifnull(owner, ''), name)
    WHERE name IS NOT NULL AND ended_at IS NULL;

-- Apart from the sessions: these may be large, and change less often.
CREATE TABLE kept (
    session INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    memory TEXT,
    history TEXT,
    history_turn INTEGER NOT NULL
) STRICT;

CREATE TABLE turns (
    session INTEGER NOT NULL,
    number INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    message TEXT NOT NULL,
    accepted_at REAL NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    started_at REAL,
    ended_at REAL,
    ended_by TEXT,
    answer TEXT,
    UNIQUE (session, number)
) STRICT;
CREATE INDEX turns_unfinished ON turns (session) WHERE status <> 'ended';

-- Rows are added at the end of the table whatever their session, so that a commit fills few pages; the index
-- on the last of a row's events finds the row of any. In a line, the byte 1A stands for the content of the
-- answer of its turn: JSON text has no such byte.
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    lines BLOB NOT NULL,
    UNIQUE (session, last_seq)
) STRICT;

CREATE TABLE questions (
    session INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    content TEXT NOT NULL,
    asked_at REAL NOT NULL,
    PRIMARY KEY (session, step_id)
) STRICT, WITHOUT ROWID;
"""

ANSWER = b"\x1a"  #: in the line of an event, for the content of its turn's answer


def content_of(answer: str | None) -> bytes:
    """The JSON text of what `TurnRecord.answer` says; of nothing where there is none."""
    return (answer or "").partition('"content":')[2][:-1].encode() or b'""'


BESIDE = ("-wal", "-shm", "-journal")  #: what SQLite keeps next to the file


class Unfit(Exception):
    """Not a journal that we can use; its message is the word that goes into the name it gets."""


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the content of the file is at fault."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_lock(error: Exception) -> bool:
    """Whether another process's transaction is in the way; it may end."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def identity(path: Path) -> tuple[int, int]:
    """Of the file that has the name now. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """To a file that is there. It may move between threads, one at a time. Raises `sqlite3.Error`."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
    )
    db.execute(f"PRAGMA busy_timeout = {LOCK_PIECE_MS}")
    return db


def is_at(path: Path, file: tuple[int, int]) -> bool:
    """Whether the name is that of the file still. Raises OSError."""
    try:
        return identity(path) == file
    except FileNotFoundError:
        return False


def open_file(path: Path, *, damaged: tuple[int, int] | None = None) -> sqlite3.Connection:
    """A connection to the journal, made when it is absent, and set aside first when it cannot be used.

    `damaged`: a file in which damage was met. Raises `sqlite3.Error`, OSError.
    """
    os.makedirs(path.parent, mode=0o700, exist_ok=True)
    with _alone_in(path.parent):
        try:
            if damaged is not None and is_at(path, damaged):
                raise Unfit("corrupt")
            return _open(path)
        except (Unfit, sqlite3.DatabaseError) as error:
            if not isinstance(error, Unfit) and not is_damage(error):
                raise
            kind = str(error) if isinstance(error, Unfit) else "corrupt"
            kept = _set_aside(path, kind)
        if kind == "newer":
            problem = "was written by a newer agentmgr: upgrade to read it"
        else:
            problem = "is damaged, or not a journal: the sessions in it are not read"
        log.error("the journal %s %s. It is kept as %s, and a new one begins", path, problem, kept)
        return _open(path)


def copy_log(path: Path) -> int:
    """Copies what was committed from SQLite's log into the file. Commits go on meanwhile.

    Returns the pages that the log had. Where it was copied whole, it begins anew with the next commit.
    """
    with closing(connect(path)) as db:
        return int(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])


def _open(path: Path) -> sqlite3.Connection:
    # Conversations are for their owner only. SQLite gives the files beside it the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if 0 < os.stat(path).st_size < SMALLEST_PAGE_BYTES:  # which SQLite would take for an empty database
        raise Unfit("corrupt")
    db = connect(path)
    try:
        _prepare(db)
    except BaseException:  # goes on: it is only closed
        db.close()
        raise
    return db


def version_of(db: sqlite3.Connection) -> int:
    """0: it is empty. Raises `Unfit`."""
    (things,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    if (things or version) and application_id != APPLICATION_ID:
        raise Unfit("corrupt")
    if version > VERSION:
        raise Unfit("newer")
    return int(version)


def _prepare(db: sqlite3.Connection) -> None:
    version = version_of(db)
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table; later it says nothing
    db.execute("PRAGMA journal_mode = WAL")
    # A commit outlives the process. A power cut may take the last of them back, all after one moment.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
    db.execute("PRAGMA wal_autocheckpoint = 0")  # a commit does not wait for the disk: see `copy_log`
    if version < VERSION:
        script = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        db.executescript(f"BEGIN IMMEDIATE; {TABLES} {script} COMMIT;")
    db.execute(links.TABLE)  # which a journal of this version may lack
    links.forget_old(db)


def set_aside_of(path: Path) -> list[Path]:
    """The files that were this journal and could not be used, the newest first."""
    kept = path.parent.glob(f"{escape(path.name)}.*Z")
    return sorted(kept, key=lambda each: each.name.rpartition("-")[2], reverse=True)


def _set_aside(path: Path, kind: str) -> Path:
    """Gives the file another name. What lies beside it goes first: SQLite would read it into a new file."""
    kept = path.with_name(f"{path.name}.{kind}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for suffix in (*BESIDE, ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(kept.with_name(kept.name + suffix))
    return kept


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keeps other processes from opening, or setting aside, a journal there meanwhile."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(fd)
        yield
    finally:
        os.close(fd)
