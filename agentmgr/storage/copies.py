"""Copies of the database: making one while all goes on, and putting one back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex

import trio

from ..errors import Conflict, DatabaseUnusable, StorageError
from ..models import TokenPolicy, utc_now
from . import schema, tables
from .schema import UnreadableRow

PAGES_AT_ONCE = 1024  #: 4 MB; between them a cancellation is heeded


def back_up(path: Path, destination: Path) -> None:
    """Copies the database at `path`, as it is at one moment, to one file that only this user may read.

    To be called in a worker thread. Raises `Conflict` when `destination` exists; leaves nothing there when it
    fails.
    """
    try:
        os.close(_new(destination))  # first of all, so that two backups cannot overwrite each other
    except FileExistsError:
        raise Conflict(f"{destination} is there already: name a file that is not") from None
    except OSError as error:
        raise DatabaseUnusable(f"{destination} cannot be written: {error.strerror}") from error
    done = False
    try:
        with _draft(destination) as partial:
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
            destination.unlink(missing_ok=True)


async def restore(
    source: Path, path: Path, *, forget: frozenset[str] = frozenset(), as_new: bool = False
) -> Path | None:
    """Puts a copy of the database `source` in the place of the one at `path`, at once and whole.

    The caller holds the lock of `path`: no manager runs on it. The copy is checked, page by page and row by
    row, and brought up to date before anything is replaced. Returns where the database that was there is
    kept now; None when there was none. Raises `DatabaseUnusable`, `DatabaseDamaged` and `DatabaseTooNew`, and
    then `path` is as it was.

    `forget`: ids of instances that it is not to record. What asks for tokens at `path` goes on asking, also
    when the copy is from before the tokens. `as_new`: the nodes of its cluster are another database's.
    """
    return await trio.to_thread.run_sync(
        _put_back, source, path, forget, as_new, limiter=trio.CapacityLimiter(1)
    )


def _put_back(source: Path, path: Path, forget: frozenset[str], as_new: bool) -> Path | None:
    source, path = Path(os.path.realpath(source)), Path(os.path.realpath(path))
    if source == path:
        raise Conflict(f"{source} cannot be restored from itself: name a copy that `agentmgr backup` made")
    if schema.inspect(source) == 0:
        raise DatabaseUnusable(f"{source} is no copy of a database: it is empty or not there")
    try:
        with _draft(path) as restored:
            copy(source, restored)
            _check(restored, source)
            _adapt(restored, path, forget, as_new)
            kept = _keep(path) if path.exists() else None
            _remove_beside(path)  # next to the new file, SQLite would take them for a part of it
            restored.replace(path)
        _sync_directory(path.parent)
        return kept
    except UnreadableRow as error:
        raise schema.translated(error, source) from error
    except (sqlite3.Error, OSError) as error:
        raise schema.translated(error, path) from error


def _check(restored: Path, source: Path) -> None:
    """Brings the copy of `source` up to date and reads it as the next manager will."""
    _refuse_strange(source, schema.read_only(restored, schema.strange))
    with closing(schema.open_for_writing(restored)) as db:
        _refuse_strange(source, schema.strange(db))
        for problem in (
            *db.execute("PRAGMA integrity_check(1)").fetchall(),
            *db.execute("PRAGMA foreign_key_check").fetchall(),
        ):
            if problem != ("ok",):
                raise schema.damaged(source, problem[0])
        tables.load(db)


def _refuse_strange(source: Path, found: str | None) -> None:
    if found is not None:
        raise DatabaseUnusable(
            f"{source} has {found}, which no database of agentmgr's has: restore a copy that "
            "`agentmgr backup` made"
        )


def _adapt(restored: Path, path: Path, forget: frozenset[str], as_new: bool) -> None:
    """To its new place: what asks for tokens there goes on asking, and what runs elsewhere is not its own."""
    with closing(schema.open_for_writing(restored)) as db:
        policy = tables.token_policy(db)
        with suppress(StorageError, sqlite3.Error, UnreadableRow):  # damaged, which may be why it is replaced
            if schema.inspect(path):
                now = schema.read_only(path, partial(schema.in_present_shape, tables.token_policy))
                policy = TokenPolicy(policy.api or now.api, policy.gateway or now.gateway)
        tables.set_token_policy(db, policy)
        for instance_id in forget:
            tables.delete_instance(db, instance_id)
        if as_new:
            tables.leave_cluster(db)


def _keep(path: Path) -> Path:
    """Gives the database at `path` a second name, together with what was not merged into it yet."""
    kept = path.with_name(f"{path.name}.before-restore-{utc_now():%Y%m%dT%H%M%S.%fZ}")
    try:
        schema.inspect(path)
        with closing(schema.connect(path, "mode=rw")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (StorageError, sqlite3.Error):
        pass  # damaged, which may be why it is replaced: kept as it is
    _copy_bytes(path, kept)
    wal = schema.beside(path, "-wal")
    if wal.exists():
        _copy_bytes(wal, schema.beside(kept, "-wal"))
    return kept


def _copy_bytes(source: Path, destination: Path) -> None:
    """To a new file that only its owner may read, whatever the umask."""
    with source.open("rb") as old, open(_new(destination), "wb") as new:
        shutil.copyfileobj(old, new)


def _new(path: Path) -> int:
    """A descriptor of a file that was not there. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


@contextmanager
def _draft(final: Path) -> Iterator[Path]:
    """A new, empty file beside `final`, with a name of its own; gone in the end, unless it was moved."""
    draft = final.with_name(f"{final.name}.{token_hex(8)}.partial")
    os.close(_new(draft))
    try:
        yield draft
    finally:
        _remove_beside(draft)
        draft.unlink(missing_ok=True)


def copy(source: Path, destination: Path) -> None:
    """Fills an empty file with the content of the database `source` at one moment, synced to the disk."""
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


def _remove_beside(path: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        schema.beside(path, suffix).unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Makes a rename in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
