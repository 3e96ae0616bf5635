"""The connections that read one session's events, each at its own place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import trio

from .replay import Reader, ReplayBuffer

if TYPE_CHECKING:
    from .session import Session

ACK_PATIENCE_S = 5.0
STALL_S = 30.0
"""How long a turn waits for a connected client to read; then it goes on, and where nothing else has what the
buffer drops, there is a gap."""


class Link(Protocol):
    """The connection behind a reader, as its session calls it."""

    def wake(self) -> None:
        """There may be something to read."""

    def lose(self, session: Session) -> None:
        """Another connection reads the session, and wants it alone."""

    def must_come_back(self) -> None:
        """Another instance holds a session of it: its client is to connect again."""


class Readers:
    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer = buffer
        self._links: dict[Reader, Link] = {}
        self._moved = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._links)

    @property
    def links(self) -> list[Link]:
        return list(self._links.values())

    @property
    def bytes_held(self) -> int:
        return sum(reader.bytes_held for reader in self._links)

    def add(self, link: Link, after: int) -> Reader:
        reader = Reader(self._buffer, sent=min(after, self._buffer.last_seq))
        self._links[reader] = link
        return reader

    def remove(self, reader: Reader) -> bool:
        """False when it was removed before."""
        removed = self._links.pop(reader, None) is not None
        self.moved()
        return removed

    def ack(self, reader: Reader, seq: int) -> None:
        reader.ack(seq, self._links)
        self.moved()

    def wake(self) -> None:
        for link in self._links.values():
            link.wake()

    def send_back(self) -> None:
        """Has their clients connect again."""
        for link in self.links:
            link.must_come_back()

    def moved(self) -> None:
        """Something was read, acknowledged or committed: what waits for that looks again."""
        self._moved.unpark_all()

    def must_wait(self, size: int) -> bool:
        """Whether an event of `size` bytes would push out what nothing else has, or no client has got."""
        return not self._buffer.has_room(size) and (self._is_ahead(size) or self._would_miss(size))

    async def wait_for_room(self, size: int) -> None:
        while self._is_ahead(size):
            await self._moved.park()  # for the journal, which commits it or gives up
        # First for acknowledgements, if there are any: what is on the way could still get lost. Clients that
        # are late with them are then taken to have received what they were sent, which is likely and not
        # certain.
        with trio.move_on_after(ACK_PATIENCE_S) as patience:
            await self._wait_for_clients(size)
        if patience.cancelled_caught:
            for reader in self._links:
                reader.acks = False
            with trio.move_on_after(STALL_S):
                await self._wait_for_clients(size)

    async def _wait_for_clients(self, size: int) -> None:
        while self._would_miss(size):
            await self._moved.park()

    def _is_ahead(self, size: int) -> bool:
        """Of the journal: what would go is not committed."""
        visible = self._buffer.visible
        return visible < self._buffer.last_seq and self._buffer.would_lose(visible + 1, size)

    def _would_miss(self, size: int) -> bool:
        """Whether the client that has got most would miss something; the others do not count."""
        if not self._links:
            return False
        needed = [reader.needed_from for reader in self._links]
        return self._buffer.would_lose(max(needed), size)
