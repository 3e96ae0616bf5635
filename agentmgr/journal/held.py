"""A session that this host holds, between its copy in memory and the task that writes."""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Protocol

import trio

from .journal import Change, Copy, Frame, SessionSnapshot, StoredFrame
from .writing import Place, Released


class Keeper(Protocol):
    """What it needs of its journal."""

    def arrived(self, held: HeldSession) -> None: ...
    def more_bytes(self, size: int) -> None: ...
    async def next_flush(self) -> None: ...
    async def read_frames(
        self, place: Place, first: int, last: int, max_bytes: int
    ) -> Sequence[StoredFrame]: ...
    def let_go(self, held: HeldSession) -> None: ...


class HeldSession:
    """See `Held`."""

    def __init__(self, journal: Keeper, place: Place, loaded: SessionSnapshot, *, dropping: bool) -> None:
        self.loaded = loaded
        self.place = place
        self.dropping = dropping  #: what is handed over is not written; it counts as committed
        self.dirty = False  #: the file lacks something
        self.released = False
        self._journal = journal
        self._copy: Copy | None = None
        self._changes: list[Change | Released] = []
        self._writing: list[Change | Released] = []
        self._lost = False

    def keep(self, copy: Copy) -> None:
        self._copy = copy

    def write(self, *changes: Change | Released) -> None:
        if self.dropping:
            self.dirty = True
            self._tell(changes)
            return
        if not self._changes:
            self._journal.arrived(self)
        self._changes += changes
        for change in changes:
            if type(change) is Frame:
                self._journal.more_bytes(len(change.line))

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._changes or self._writing:
            await self._journal.next_flush()

    async def frames(self, first: int, last: int, *, max_bytes: int) -> Sequence[StoredFrame]:
        return await self._journal.read_frames(self.place, first, last, max_bytes)

    async def release(self) -> None:
        if not self.released:
            self.released = True
            self.write_release()
            await self.settled()
            self._journal.let_go(self)

    # What the journal calls.

    def write_release(self) -> None:
        self.write(Released(time()))

    def take(self) -> list[Change | Released]:
        self._writing, self._changes = self._changes, []
        return self._writing

    def gather(self) -> None:
        """What is to be written, too, is in the snapshot that is."""
        self._writing, self._changes = self._writing + self._changes, []

    @property
    def is_writing(self) -> bool:
        return bool(self._writing)

    def wrote(self) -> None:
        written, self._writing = self._writing, []
        self._tell(written)

    def drop(self) -> None:
        dropped, self._writing, self._changes = self._writing + self._changes, [], []
        self.dirty = self.dirty or bool(dropped)
        self.dropping = True
        self._tell(dropped)

    def lose(self) -> None:
        self._writing, self._changes = [], []
        if not self._lost and self._copy is not None:
            self._lost = self.dropping = True
            self._copy.lost()

    def snapshot(self) -> SessionSnapshot:
        return self.loaded if self._copy is None else self._copy.snapshot()

    def _tell(self, changes: Sequence[Change | Released]) -> None:
        if self._lost or self._copy is None:
            return
        for change in reversed(changes):
            if type(change) is Frame:
                self._copy.committed(change.seq)
                return
