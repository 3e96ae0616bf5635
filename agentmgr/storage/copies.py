"""Copies of the database: making one while all goes on, and putting one back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import trio

from ..errors import Conflict, DatabaseUnusable
from . import schema

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
            partial.unlink(missing_ok=True)
            destination.unlink(missing_ok=True)


def copy(source: Path, destination: Path) -> None:
    """Writes a new file with the content of the database `source` at one moment, synced to the disk."""
    os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    with (
        closing(schema.connect(source, "mode=ro")) as old,
        closing(schema.connect(destination, "mode=rw")) as new,
    ):
        # The open transaction holds the moment fast; writers go on meanwhile.
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        old.backup(new, pages=PAGES_AT_ONCE, progress=lambda *_: trio.from_thread.check_cancelled(), sleep=0)
        new.execute("PRAGMA journal_mode = DELETE")  # one file, also for programs that only read
    with destination.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes a rename in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
