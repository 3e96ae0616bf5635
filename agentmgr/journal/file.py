"""A journal's file as one host has it open. All of it blocks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

from . import holders, schema, writing


class Replaced(OSError):
    """The file is not the one that was opened."""


class JournalFile:
    """Two connections, of which one writes, and the lock that says that its holder lives."""

    def __init__(self, path: Path, instance_id: str) -> None:
        self.path = Path(os.path.realpath(path))  # what lies beside it is where SQLite puts it
        self.holder = ""
        self.set_aside: list[str] = []
        self._instance_id = instance_id
        self._lock = ExitStack()  # of the holder
        self._db: sqlite3.Connection | None = None
        self._reads: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._damaged: tuple[int, int] | None = None  # the file that is

    def make_ready(self) -> bool:
        """Whether the file is another one than before. Raises `sqlite3.Error`, OSError."""
        directory = self.path.parent
        if not self.holder or not holders.lives(directory, self.holder):
            self._lock.close()
            self.holder = self._lock.enter_context(holders.living(directory, self._instance_id))
        before = self._identity
        if self._db is not None and before != self._damaged and schema.is_at(self.path, before):
            with writing.transaction(self._db):
                self._db.execute(f"PRAGMA user_version = {schema.VERSION}")  # writes, which is what is tried
            return False
        self._close_connections()
        self._db = schema.open_file(self.path, damaged=self._damaged)
        self._db.execute("PRAGMA busy_timeout = 0")  # it is the journal that tries again
        self._identity = schema.identity(self.path)
        self.set_aside = [kept.name for kept in schema.set_aside_of(self.path)]
        return True

    def check(self) -> None:
        """Raises `Replaced`, OSError."""
        if schema.identity(self.path) != self._identity:
            raise Replaced("another file has its name now")

    def is_damaged(self) -> None:
        """Has `make_ready` set it aside."""
        self._damaged = self._identity

    @property
    def writes(self) -> sqlite3.Connection:
        """Raises `Replaced`."""
        if self._db is None:
            raise Replaced("it is not open")
        return self._db

    @property
    def reads(self) -> sqlite3.Connection:
        if self._reads is None:
            self._reads = schema.connect(self.path)
            self._reads.execute("PRAGMA query_only = ON")
        return self._reads

    def may_hold(self, holder: str) -> bool:
        return holders.may_hold(self.path.parent, holder)

    def close(self) -> None:
        self._close_connections()
        self._lock.close()

    def _close_connections(self) -> None:
        for db in (self._reads, self._db):
            if db is not None:
                db.close()
        self._reads = self._db = None
