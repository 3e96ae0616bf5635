"""Copies of journals: made while hosts write, put back while no manager runs. All of it blocks."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

from ..errors import Conflict, StorageError
from . import schema


def back_up(journals: Iterable[Path], directory: Path) -> None:
    """Copies each, as it is at one moment, to `directory`, which only its owner may read and which is made.

    Leaves nothing there when it fails. Raises `Conflict` where it is there, `StorageError`.
    """
    journals = list(journals)
    if not journals:
        return
    try:
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise Conflict(f"{directory} is there already: name another file for the copy") from None
    except OSError as error:
        raise StorageError(f"{directory} cannot be made: {error.strerror}") from error
    done = False
    try:
        for path in journals:
            copy_one(path, directory / path.name)
        done = True
    finally:
        if not done:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):
                directory.parent.rmdir()


def draft(source: Path, directory: Path) -> Path | None:
    """The journals of a copy, checked and copied once more, in a directory beside `directory`; None where the
    copy has none. Raises `StorageError`.
    """
    journals = sorted(source.glob("*.db")) if source.is_dir() else []
    if not journals:
        return None
    drafted = directory.with_name(f"{directory.name}.{_now()}.partial")
    back_up(journals, drafted)
    return drafted


def put_back(drafted: Path, directory: Path) -> Path | None:
    """Puts a draft in the place of `directory`. Returns where the journals are kept that were there, and
    removes those that were kept the last time: of erased sessions no copies are to pile up.

    Hosts that run see that their file was replaced, and write what they hold to the new one. Raises OSError.
    """
    kept = None
    if directory.exists():
        older = list(directory.parent.glob(f"{escape(directory.name)}.before-restore-*"))
        kept = directory.rename(directory.with_name(f"{directory.name}.before-restore-{_now()}"))
        for former in older:
            shutil.rmtree(former, ignore_errors=True)
    drafted.rename(directory)
    for lock in kept.glob("*.lock") if kept is not None else ():  # they are locked by hosts that live
        with suppress(OSError):
            lock.rename(directory / lock.name)
    return kept


def remove(path: Path) -> None:
    """Removes a journal, what SQLite keeps beside it, and what was set aside of it, or was to move. Raises
    `StorageError`.
    """
    set_aside = sorted(path.parent.glob(f"{escape(path.stem)}.*"))
    for file in (*(path.with_name(path.name + suffix) for suffix in schema.BESIDE), *set_aside, path):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def copy_one(path: Path, destination: Path) -> None:
    """As it is at one moment. Raises `StorageError`."""
    try:
        os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(schema.connect(path)) as db:
            db.execute("PRAGMA busy_timeout = 5000")
            schema.version_of(db)
            # Without the free pages, so that nothing that was erased is in the copy.
            db.execute("VACUUM INTO ?", (str(destination),))
        with destination.open("rb") as file:
            os.fsync(file.fileno())
    except schema.Unfit as unfit:
        raise StorageError(f"{path} is not a journal of this version of agentmgr: move it away") from unfit
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"the journal {path} cannot be copied: {error}") from error


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
