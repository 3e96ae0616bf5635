"""The last events of a session, numbered, for clients that come back: pure bookkeeping, no I/O.

1 2 3 4 5 6 7 8 9          seq, without holes
    └── held ───┘          what a client can still be given
      ▲       ▲
      acked   sent         how far one `Reader` is
"""

from __future__ import annotations

from collections import deque

from attrs import define, frozen

_FRAME_BYTES = 48  # of a bytes object, and its place in the deque


class ReplayBuffer:
    """Holds the newest events, at most `max_events` of them and `max_bytes` in all.

    The newest is always held, whatever its size.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self.last_seq = 0  #: of the newest event there ever was

    @property
    def first_seq(self) -> int:
        """Of the oldest event held; one past `last_seq` when none is."""
        return self.last_seq - len(self._frames) + 1

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def bytes_held(self) -> int:
        """With what Python adds to each event."""
        return self._bytes + _FRAME_BYTES * len(self._frames)

    def append(self, frame: bytes) -> int:
        """Adds the next event and returns its number; the oldest make room for it."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self.last_seq += 1
        while len(self._frames) > 1 and (
            len(self._frames) > self._max_events or self._bytes > self._max_bytes
        ):
            self._drop_oldest()
        return self.last_seq

    def get(self, seq: int) -> bytes:
        """Raises `IndexError` for an event that is not held."""
        if not self.first_seq <= seq <= self.last_seq:
            raise IndexError(seq)
        return self._frames[seq - self.first_seq]

    def forget(self, up_to: int) -> None:
        """The client has these: they will not be asked for again."""
        while self._frames and self.first_seq <= up_to:
            self._drop_oldest()

    def give_up(self, size: int) -> None:
        """Frees `size` bytes, or all but the newest event."""
        most = self.bytes_held - size
        while len(self._frames) > 1 and self.bytes_held > most:
            self._drop_oldest()

    def would_lose(self, needed_from: int, size: int = 0) -> bool:
        """Whether one more event of `size` bytes would push out one from `needed_from` on."""
        count, total = len(self._frames) + 1, self._bytes + size
        for seq, held in enumerate(self._frames, start=self.first_seq):
            if count <= self._max_events and total <= self._max_bytes:
                return False
            if seq >= needed_from:
                return True
            count, total = count - 1, total - len(held)
        return False

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._frames.popleft())


@frozen
class Gap:
    """Events that were asked for and are gone."""

    first: int
    last: int


@define(eq=False)
class Reader:
    """How far one connection is in one session's events."""

    buffer: ReplayBuffer
    sent: int  #: the last event handed to the connection
    acked: int = 0
    acks: bool = False  #: it acknowledges, so what it has not acknowledged may be lost on the way

    def next(self) -> bytes | Gap | None:
        """The next event to send, or the gap before it, or None when there is nothing new."""
        if self.sent >= self.buffer.last_seq:
            return None
        if (missed := self.gap()) is not None:
            return missed
        self.sent += 1
        return self.buffer.get(self.sent)

    def gap(self) -> Gap | None:
        """The events that it has not been sent and that are gone; reported once."""
        if self.sent + 1 >= self.buffer.first_seq:
            return None
        missed = Gap(self.sent + 1, self.buffer.first_seq - 1)
        self.sent = missed.last
        return missed

    def ack(self, seq: int) -> None:
        """The client has all up to `seq`. More than was sent to it cannot be."""
        self.acks = True
        self.acked = max(self.acked, min(seq, self.sent))
        self.buffer.forget(self.acked)

    @property
    def needed_from(self) -> int:
        """The first event that it would miss if the buffer dropped it."""
        return (self.acked if self.acks else self.sent) + 1
