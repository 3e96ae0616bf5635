"""Copies of the database: making one while all goes on, and putting one back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import trio

from ..errors import Conflict, DatabaseUnusable, StorageError
from ..models import utc_now
from . import schema, tables
from .schema import UnreadableRow

PAGES_AT_ONCE = 1024  #: 4 MB; between them a cancellation is heeded


def back_up(path: Path, destination: Path) -> None:
    """Copies the database at `path`, as it is at one moment, to one file that nobody else may read.

    To be called in a worker thread. Raises `Conflict` when `destination` exists; leaves nothing there when it
    fails.
    """
    partial = destination.with_name(destination.name + ".partial")
    try:
        # The name is taken first, so that two backups cannot overwrite each other.
        os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise Conflict(f"{destination} is there already: name a file that is not") from None
    except OSError as error:
        raise DatabaseUnusable(f"{destination} cannot be written: {error.strerror}") from error
    done = False
    try:
        copy(path, partial)
        partial.replace(destination)
        _sync_directory(destination.parent)
        done = True
    except sqlite3.Error as error:
        raise schema.translated(error, destination) from error
    except OSError as error:
        raise DatabaseUnusable(f"{destination} cannot be written: {error.strerror}") from error
    finally:
        if not done:
            _remove(partial)
            destination.unlink(missing_ok=True)


async def restore(source: Path, path: Path) -> Path | None:
    """Puts a copy of the database `source` in the place of the one at `path`, at once and whole.

    The caller holds the lock of `path`: no manager runs on it. The copy is checked, page by page and row by
    row, and brought up to date before anything is replaced. Returns where the database that was there is
    kept now; None when there was none. Raises `DatabaseUnusable`, `DatabaseDamaged` and `DatabaseTooNew`, and
    then `path` is as it was.
    """
    return await trio.to_thread.run_sync(_put_back, source, path, limiter=trio.CapacityLimiter(1))


def _put_back(source: Path, path: Path) -> Path | None:
    source, path = Path(os.path.realpath(source)), Path(os.path.realpath(path))
    if source == path:
        raise Conflict(f"{source} cannot be restored from itself: name a copy that `agentmgr backup` made")
    if schema.inspect(source) == 0:
        raise DatabaseUnusable(f"{source} is no copy of a database: it is empty or not there")
    restored = path.with_name(path.name + ".restoring")
    try:
        copy(source, restored)
        _check(restored, source)
        kept = _keep(path) if path.exists() else None
        # Left beside the new file, SQLite would take them for a part of it.
        _remove(path, but_the_file=True)
        restored.replace(path)
        _sync_directory(path.parent)
        return kept
    except UnreadableRow as error:
        raise schema.translated(error, source) from error
    except (sqlite3.Error, OSError) as error:
        raise schema.translated(error, path) from error
    finally:
        _remove(restored)


def _check(restored: Path, source: Path) -> None:
    """Brings the copy of `source` up to date and reads it as the next manager will."""
    with closing(schema.open_for_writing(restored)) as db:
        for problem in (
            *db.execute("PRAGMA integrity_check(1)").fetchall(),
            *db.execute("PRAGMA foreign_key_check").fetchall(),
        ):
            if problem != ("ok",):
                raise schema.damaged(source, problem[0])
        tables.load(db)


def _keep(path: Path) -> Path:
    """Gives the database at `path` a second name, together with what was not merged into it yet."""
    kept = path.with_name(f"{path.name}.before-restore-{utc_now():%Y%m%dT%H%M%S.%fZ}")
    try:
        schema.inspect(path)
        with closing(schema.connect(path, "mode=rw")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (StorageError, sqlite3.Error):
        pass  # damaged, which may be why it is replaced: kept as it is
    shutil.copyfile(path, kept)
    kept.chmod(0o600)
    wal = schema.beside(path, "-wal")
    if wal.exists():
        shutil.copyfile(wal, schema.beside(kept, "-wal"))
    return kept


def copy(source: Path, destination: Path) -> None:
    """Writes a new file with the content of the database `source` at one moment, synced to the disk."""
    _remove(destination)  # what one that was killed left
    os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(schema.connect(destination, "mode=rw")) as new:

        def transfer(old: sqlite3.Connection) -> None:
            # Having read once, the transaction holds that moment fast; writers go on meanwhile.
            old.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            old.backup(new, pages=PAGES_AT_ONCE, progress=_heed_cancellation, sleep=0)

        schema.read_only(source, transfer)
        new.execute("PRAGMA journal_mode = DELETE")  # one file, also for programs that only read
    with destination.open("rb") as file:
        os.fsync(file.fileno())


def _heed_cancellation(*_: int) -> None:
    trio.from_thread.check_cancelled()


def _remove(path: Path, *, but_the_file: bool = False) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        schema.beside(path, suffix).unlink(missing_ok=True)
    if not but_the_file:
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Makes a rename in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
