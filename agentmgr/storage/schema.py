"""Opening the file: is it ours, is it sound, is it as new as we are?

Nothing here writes to a file that it refuses.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeVar

from ..errors import DatabaseDamaged, DatabaseTooNew, DatabaseUnusable, StorageError
from ..process.trust import distrust_database

T = TypeVar("T")

APPLICATION_ID = 0x61676D72
"""`agmr`, in the file's header: it tells our databases from those of other programs."""

SMALLEST_PAGE_BYTES = 512

_RECOVERY = (
    "It was left untouched. Keep a copy of it, then bring back the last copy that `agentmgr backup` made "
    "with `agentmgr restore FILE`, or name another database with --db-path"
)


class UnreadableRow(ValueError):
    """A row that does not parse; becomes `DatabaseDamaged` where the path is known."""

    def __init__(self, table: str, key: object, problem: object) -> None:
        super().__init__(f"row {key} of table {table} cannot be read: {problem}")


def damaged(path: Path, problem: object) -> DatabaseDamaged:
    return DatabaseDamaged(f"the database {path} is damaged ({problem}). {_RECOVERY}")


def translated(error: sqlite3.Error | OSError | UnreadableRow, path: Path) -> StorageError:
    """What the user should know of an error that SQLite or the system met at `path`."""
    if isinstance(error, UnreadableRow):
        return damaged(path, error)
    if isinstance(error, OSError):
        return DatabaseUnusable(f"the database {path} cannot be used: {error.strerror or error}")
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the rest of it is detail
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(path, error)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return DatabaseUnusable(
                f"the database {path} cannot be written ({error}): "
                "check the permissions of the file and its directory"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StorageError(f"the database {path} is locked by another program: close that and try again")
        case sqlite3.SQLITE_FULL:
            return StorageError(f"the disk is full: make room for the database {path} and try again")
        case _:
            return StorageError(f"the database {path} failed: {error}")


@cache
def migrations() -> tuple[str, ...]:
    """The scripts in order: the first makes version 1 of an empty database, and so on."""
    folder = resources.files(__package__) / "migrations"
    scripts = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda i: i.name)
    return tuple(script.read_text("utf-8") for script in scripts)


def connect(path: Path, options: str) -> sqlite3.Connection:
    """A connection that leaves transactions to us. It may move between threads, one at a time."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None, check_same_thread=False
    )


def read_only(path: Path, job: Callable[[sqlite3.Connection], T]) -> T:
    """What `job` reads in one transaction, without making or changing any file where that is possible.

    A plain read-only connection to a WAL database leaves two files beside it. So a database that
    no process has open is read as if it could not change, and read again the plain way if it did.
    """
    before = _stamp_at_rest(path)
    if before is not None:
        try:
            with closing(connect(path, "mode=ro&immutable=1")) as db:
                result = job(db)
        except (sqlite3.Error, UnreadableRow):
            if _stamp_at_rest(path) == before:
                raise
        else:
            if _stamp_at_rest(path) == before:
                return result
    # A rollback journal is there only if its writer died while it made the file. SQLite has to finish that.
    mode = "rw" if beside(path, "-journal").exists() else "ro"
    with closing(connect(path, f"mode={mode}")) as db:
        db.execute("BEGIN")
        result = job(db)
        db.execute("COMMIT")
        return result


def in_present_shape(job: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
    """What `job` reads. Of a file with an older schema that is a copy in memory, brought up to date there."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version >= len(migrations()):
        return job(db)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        db.backup(copy)
        _migrate(copy)
        return job(copy)


def strange(db: sqlite3.Connection) -> str | None:
    """What it defines that no database of ours does, such as a trigger, which would run with our rights; None
    when all is ours. Of a file with an older schema only triggers and views are seen.
    """
    for kind, name in db.execute("SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view')"):
        return f"the {kind} {name}"
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == len(migrations()):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
            _migrate(ours)
            for kind, name, *column in sorted(_defined(db) ^ _defined(ours)):
                return f"another {kind} {name}" + (f", column {column[0]}" if column else "")
    return None


def _defined(db: sqlite3.Connection) -> set[tuple[str, ...]]:
    """Its tables and indexes, and the columns with all that is known of them."""
    own = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"  # those are SQLite's
    things = set[tuple[str, ...]](db.execute(f"SELECT type, name FROM sqlite_schema WHERE {own}"))
    columns = db.execute(
        "SELECT 'table', t.name, c.name, c.type, c.\"notnull\", c.dflt_value, c.pk, c.hidden"
        f" FROM sqlite_schema t, pragma_table_xinfo(t.name) c WHERE t.type = 'table' AND t.{own}"
    )
    return things | {tuple(map(str, row)) for row in columns}


def _stamp_at_rest(path: Path) -> tuple[int, ...] | None:
    """Tells one state of the file from another; None where a process may have it open for writing."""
    if beside(path, "-wal").exists() or beside(path, "-journal").exists():
        return None
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def beside(path: Path, suffix: str) -> Path:
    """The path of a file that SQLite keeps along with the database."""
    return path.with_name(path.name + suffix)


def inspect(path: Path, *, every_page: bool = True) -> int:
    """The schema version of the file at `path`; 0 when it is absent or empty.

    With `every_page` the whole file is searched for damage. Raises `DatabaseUnusable`, `DatabaseDamaged` and
    `DatabaseTooNew`.
    """
    try:
        if path.is_dir():
            raise DatabaseUnusable(f"{path} is a directory: name a file in it with --db-path")
        if (problem := distrust_database(path)) is not None:
            raise DatabaseUnusable(problem)
        if not path.exists():
            if not path.parent.is_dir():
                raise DatabaseUnusable(
                    f"the directory {path.parent} does not exist: "
                    "make it, or name another file with --db-path"
                )
            return 0
        if not path.is_file():
            raise DatabaseUnusable(f"{path} is not a regular file: name another one with --db-path")
        size = path.stat().st_size
        if size == 0:
            return 0
        if size < SMALLEST_PAGE_BYTES:  # which SQLite would take for an empty database
            raise damaged(path, f"it has {size} bytes")
        application_id, version, things = read_only(path, _particulars)
    except (sqlite3.Error, OSError) as error:
        raise translated(error, path) from error
    if application_id == 0 and version == 0 and things == 0:
        return 0  # its maker was killed before the first migration
    if application_id != APPLICATION_ID:
        raise DatabaseDamaged(
            f"{path} is a database, but not one of agentmgr's. It was left untouched: "
            "name another file with --db-path"
        )
    latest = len(migrations())
    if version > latest:
        raise DatabaseTooNew(
            f"a newer agentmgr wrote the database {path} (schema {version}; this one knows up to {latest}). "
            "It was left untouched: upgrade agentmgr, or bring back a copy that `agentmgr backup` made "
            "before with `agentmgr restore FILE`"
        )
    if every_page:
        try:
            verdict = read_only(path, _quick_check)
        except (sqlite3.Error, OSError) as error:
            raise translated(error, path) from error
        if verdict != "ok":
            raise damaged(path, verdict)
    return version


def _particulars(db: sqlite3.Connection) -> tuple[int, int, int]:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (things,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return application_id, version, things


def _quick_check(db: sqlite3.Connection) -> str:
    verdict: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    return verdict


def open_for_writing(path: Path) -> sqlite3.Connection:
    """A connection to a sound database of the newest schema, made or brought up to date as needed."""
    inspect(path)
    try:
        # It holds the secrets of running instances: for its owner only. SQLite gives the files beside it
        # the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = connect(path, "mode=rw")
        try:
            db.execute("PRAGMA busy_timeout = 5000")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a transaction that has returned survives a power cut
            _migrate(db)
        except sqlite3.Error:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise translated(error, path) from error
    return db


def _migrate(db: sqlite3.Connection) -> None:
    for number, script in enumerate(migrations(), 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] < number:
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    # Connection.executescript would commit before it begins.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
