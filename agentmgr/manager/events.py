"""What happened: kept, and passed on to those who follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ..models import Event
from ..storage.store import HistoryLimits, Store

#: A listener that lags so far behind is cut off; it can read what it missed from the store.
_BACKLOG = 1000


class EventLog:
    """Has the store keep events, and passes them to live listeners."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    def announce(self, event: Event) -> Event:
        """Never blocks and never raises: supervision must not depend on who listens.

        Returns the event with its id.
        """
        event = self._store.record(event)
        for listener in tuple(self._listeners):
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._listeners.discard(listener)
                listener.close()
        return event

    async def kept(self) -> tuple[Event, ...]:
        """All that are kept, oldest first."""
        return await self._store.events(limit=HistoryLimits().events)

    @contextmanager
    def subscribe(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """The events from now on. The channel ends if its reader falls too far behind."""
        send, receive = trio.open_memory_channel[Event](_BACKLOG)
        self._listeners.add(send)
        with send, receive:
            try:
                yield receive
            finally:
                self._listeners.discard(send)
