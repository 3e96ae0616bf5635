"""What hosts keep of their clients' connections, so that others can go on with them: see `agent.link_log`.

A connection's row is written with what its client's messages did, in one transaction. So a message counts as
taken in exactly if what it did is in the journal.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from attrs import define, field

OUTDATED = "null"  #: the state of one that may have gone on while the journal could not be written
KEPT_S = 7 * 86400.0  #: a row that was not written for so long is of a connection that is gone

TABLE = """
CREATE TABLE IF NOT EXISTS links (
    id TEXT PRIMARY KEY, -- the gateway's id of the connection
    holder TEXT NOT NULL,
    written_at REAL NOT NULL,
    state TEXT NOT NULL
) STRICT;
"""

# A row that was deleted with a session that was erased does not come back.
_CHANGE = "UPDATE links SET written_at = :at, state = :state WHERE id = :id AND holder = :holder"
_PUT = """
INSERT INTO links (id, holder, written_at, state) VALUES (:id, :holder, :at, :state) ON CONFLICT (id)
DO UPDATE SET state = excluded.state, written_at = excluded.written_at WHERE holder = excluded.holder
"""


class LinkCopy(Protocol):
    """A connection as its host has it, as the journal calls it back. None of it may raise or wait."""

    def record(self) -> str:
        """All that is to be kept of it."""

    def must_come_back(self) -> None:
        """Another host goes on with it."""


class Keeper(Protocol):
    """What a held link needs of its journal."""

    def link_changed(self, link: HeldLink) -> None: ...
    async def next_flush(self) -> None: ...
    def let_link_go(self, link: HeldLink) -> None: ...


@define(eq=False)
class HeldLink:
    """A connection that this host serves."""

    id: str
    copy: LinkCopy
    _journal: Keeper
    _changes: int = field(default=0, init=False)
    _taken: int = field(default=0, init=False)  # of the changes, by the writer
    _written: int = field(default=0, init=False)
    over: bool = field(default=False, init=False)  #: and its row is to be deleted
    has_row: bool = field(default=False, init=False)
    is_outdated: bool = field(default=False, init=False)  #: the row, or that there is none

    def changed(self) -> None:
        """What it is now is committed together with what sessions have handed over since the last commit."""
        self._changes += 1
        if self._changes == self._taken + 1:
            self._journal.link_changed(self)

    @property
    def is_settled(self) -> bool:
        return self._written == self._changes

    async def settled(self) -> None:
        """Returns when all changes up to now are committed, or the journal is degraded."""
        wanted = self._changes
        while self._written < wanted:
            await self._journal.next_flush()

    def end(self, *, for_good: bool) -> None:
        """The connection is over here; unless it is `for_good`, another host may go on with it."""
        if for_good:
            self.over = True
            self.changed()
        self._journal.let_link_go(self)

    # What the journal calls.

    def take(self) -> str | None:
        """What is to be written; None: its row is to be deleted."""
        self._taken = self._changes
        return None if self.over else self.copy.record()

    def wrote(self) -> None:
        self._written, self.has_row, self.is_outdated = self._taken, True, False

    def drop(self) -> None:
        """The journal cannot be written; once it can, `changed` is called."""
        self._written = self._taken = self._changes
        self.has_row, self.is_outdated = False, True


def outdate(db: sqlite3.Connection, holder: str, link_ids: Iterable[str]) -> None:
    """No host goes on from what is kept of a holder's connections; some may have ended meanwhile."""
    now = time.time()
    db.executemany(_PUT, [{"id": it, "holder": holder, "at": now, "state": OUTDATED} for it in link_ids])
    db.execute("UPDATE links SET state = ? WHERE holder = ?", (OUTDATED, holder))


def write(
    db: sqlite3.Connection, holder: str, links: Sequence[tuple[HeldLink, str | None]]
) -> list[HeldLink]:
    """Inside a transaction. Returns those that another host has taken over."""
    lost, now = [], time.time()
    for link, state in links:
        if state is None:
            db.execute("DELETE FROM links WHERE id = ? AND holder = ?", (link.id, holder))
            continue
        values = {"id": link.id, "holder": holder, "at": now, "state": state}
        if not db.execute(_CHANGE if link.has_row else _PUT, values).rowcount:
            lost.append(link)
    return lost


def take_over(db: sqlite3.Connection, holder: str, link_id: str) -> str | None:
    """What is kept of a connection, which only `holder` may write from now on."""
    found = db.execute(
        "UPDATE links SET holder = ? WHERE id = ? RETURNING state", (holder, link_id)
    ).fetchone()
    return None if found is None else str(found[0])


def forget_with(db: sqlite3.Connection, session_ids: Iterable[str]) -> None:
    """What is kept of connections that read one of these sessions."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'links'").fetchone():
        db.executemany("DELETE FROM links WHERE instr(state, ?)", [(it,) for it in session_ids])


def forget_old(db: sqlite3.Connection) -> None:
    then = (time.time() - KEPT_S,)
    if db.execute("SELECT 1 FROM links WHERE written_at < ? LIMIT 1", then).fetchone():
        db.execute("DELETE FROM links WHERE written_at < ?", then)
