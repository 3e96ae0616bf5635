"""A journal that keeps nothing: sessions live as long as their process."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from .journal import Change, Copy, Frame, Held, MayOwn, SessionRecord, SessionSnapshot, StoredFrame


class MemoryJournal:
    """See `SessionJournal`. What is handed over counts as committed at once."""

    durable = False
    degraded = None
    set_aside = ()

    async def create(self, record: SessionRecord) -> Held:
        await trio.lowlevel.checkpoint()
        return _InMemory(record)

    async def take_up(self, session_id: str, may_own: MayOwn | None = None) -> Held | None:
        await trio.lowlevel.checkpoint()
        return None

    async def unfinished(self) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return ()


class _InMemory:
    def __init__(self, record: SessionRecord) -> None:
        self.loaded = SessionSnapshot(record, (), ())
        self._copy: Copy | None = None

    def keep(self, copy: Copy) -> None:
        self._copy = copy

    def write(self, *changes: Change) -> None:
        for change in changes:
            if type(change) is Frame and self._copy is not None:
                self._copy.committed(change.seq)

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()

    async def frames(self, first: int, last: int, *, max_bytes: int) -> Sequence[StoredFrame]:
        await trio.lowlevel.checkpoint()
        return ()

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()
