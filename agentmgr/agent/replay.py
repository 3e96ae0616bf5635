"""The last events of a session, numbered, for clients that come back: pure bookkeeping, no I/O.

1 2 3 4 5 6 7 8 9          seq, without holes but where it jumps
    └── held ───┘          in memory; of a durable session, what is older is in the journal
      ▲     ▲ ▲
      acked │ visible      what clients may be given: all, or what the journal has committed
            sent           how far one `Reader` is
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import chain

from attrs import define, field, frozen

_FRAME_BYTES = 48  # of a bytes object, and its place in the deque


class ReplayBuffer:
    """Holds the newest events, at most `max_events` of them and `max_bytes` in all.

    The newest is always held, whatever its size.
    """

    def __init__(self, *, max_events: int, max_bytes: int, journaled: bool = False) -> None:
        """`journaled`: `visible` is raised by a journal, which also has what is dropped here."""
        self.journaled = journaled
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()  # up to `last_seq`
        self._before: deque[tuple[int, bytes]] = deque()  # a jump
        self._jump = 0, 0  # the last one: from, and to
        self._bytes = 0
        self.last_seq = 0  #: of the newest event there ever was
        self.visible = 0  #: of the newest event that clients may be given

    @property
    def first_seq(self) -> int:
        """Of the oldest event held; one past `last_seq` when none is."""
        return self._before[0][0] if self._before else self._first_since

    @property
    def _first_since(self) -> int:
        return self.last_seq - len(self._frames) + 1

    @property
    def _count(self) -> int:
        return len(self._before) + len(self._frames)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def bytes_held(self) -> int:
        """With what Python adds to each event."""
        return self._bytes + _FRAME_BYTES * self._count

    def append(self, frame: bytes) -> int:
        """Adds the next event and returns its number; the oldest make room for it."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self.last_seq += 1
        if not self.journaled:
            self.visible = self.last_seq
        while (count := self._count) > 1 and (count > self._max_events or self._bytes > self._max_bytes):
            self._drop_oldest()
        return self.last_seq

    def restore(self, frames: Iterable[bytes], last_seq: int) -> None:
        """As it was: these are the newest events up to `last_seq`, and all of them were visible."""
        self.last_seq = last_seq
        self._frames = deque(frames)
        self._bytes = sum(map(len, self._frames))
        self.visible = last_seq

    def jump(self, seq: int) -> None:
        """The next event comes after `seq`; none between is there. What was said before is held on."""
        self._before.extend(enumerate(self._frames, start=self._first_since))
        self._frames.clear()
        self._jump = self.last_seq, seq
        self.last_seq = seq
        self.show(self.visible)

    def show(self, seq: int) -> None:
        """All events up to `seq` are visible, and the numbers that a jump left out behind them."""
        self.visible = max(self.visible, seq)
        if self.visible == self._jump[0]:
            self.visible = self._jump[1]

    def held(self) -> Iterable[tuple[int, bytes]]:
        return chain(self._before, enumerate(self._frames, start=self._first_since))

    def get(self, seq: int) -> bytes | None:
        """None for one that a jump has left out. Raises `IndexError` for an event that is not held."""
        if not self.first_seq <= seq <= self.last_seq:
            raise IndexError(seq)
        if seq >= (first := self._first_since):
            return self._frames[seq - first]
        return dict(self._before).get(seq)

    def next_held(self, seq: int) -> int:
        """The number of the first event held from `seq` on; one past `last_seq` when none is."""
        return next((each for each, _ in self.held() if each >= seq), self.last_seq + 1)

    def forget(self, up_to: int) -> None:
        """The client has these: they will not be asked for again."""
        while self._count and self.first_seq <= up_to:
            self._drop_oldest()

    def give_up(self, size: int) -> None:
        """Frees `size` bytes, or all but the newest event."""
        most = self.bytes_held - size
        while self._count > 1 and self.bytes_held > most:
            self._drop_oldest()

    def has_room(self, size: int) -> bool:
        """Whether one more event of `size` bytes pushes out none."""
        return self._count < self._max_events and self._bytes + size <= self._max_bytes

    def would_lose(self, needed_from: int, size: int = 0) -> bool:
        """Whether one more event of `size` bytes would push out one from `needed_from` on."""
        count, total = self._count + 1, self._bytes + size
        for seq, held in self.held():
            if count <= self._max_events and total <= self._max_bytes:
                return False
            if seq >= needed_from:
                return True
            count, total = count - 1, total - len(held)
        return False

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._before.popleft()[1] if self._before else self._frames.popleft())


@frozen
class Gap:
    """Events that were asked for and are gone."""

    first: int
    last: int


class Behind(Enum):
    """The next event is not in memory any more: it is to be read from the journal, see `Reader.fill`."""

    BEHIND = "behind"


BEHIND = Behind.BEHIND


@define(eq=False)
class Reader:
    """How far one connection is in one session's events."""

    buffer: ReplayBuffer
    sent: int  #: the last event handed to the connection
    acked: int = 0
    acks: bool = False  #: it acknowledges, so what it has not acknowledged may be lost on the way
    _older: deque[tuple[int, bytes]] = field(factory=deque, init=False)  # from there

    def next(self) -> bytes | Gap | Behind | None:
        """The next event to send, or the gap before it, or None when there is nothing new."""
        if self.sent >= self.buffer.visible:
            return None
        if self.sent + 1 >= self.buffer.first_seq:
            if (frame := self.buffer.get(self.sent + 1)) is None:
                return self._skip(self.buffer.next_held(self.sent + 1) - 1)
            self.sent += 1
            return frame
        return self._next_older() if self.buffer.journaled else self.gap()

    def _next_older(self) -> bytes | Gap | Behind:
        if not self._older:
            return BEHIND
        seq, frame = self._older[0]
        if seq > self.sent + 1:
            return self._skip(seq - 1)
        self._older.popleft()
        self.sent = seq
        return frame

    def fill(self, frames: Sequence[tuple[int, bytes]], asked_to: int) -> Gap | None:
        """What the journal has of the events after `sent`, up to `asked_to`; the gap where it has none."""
        self._older = deque(frames)
        return None if frames else self._skip(asked_to)

    def gap(self) -> Gap | None:
        """The events that it has not been sent and that are gone; reported once."""
        if self.buffer.journaled or self.sent + 1 >= self.buffer.first_seq:
            return None
        return self._skip(self.buffer.first_seq - 1)

    def _skip(self, to: int) -> Gap:
        missed = Gap(self.sent + 1, to)
        self.sent = to
        return missed

    def ack(self, seq: int, others: Iterable[Reader] = ()) -> None:
        """The client has all up to `seq`. More than was sent to it cannot be.

        The buffer forgets what the `others`, who read the same session, do not need either.
        """
        self.acks = True
        self.acked = max(self.acked, min(seq, self.sent))
        self.buffer.forget(min((self.acked, *(other.needed_from - 1 for other in others))))

    @property
    def finished(self) -> bool:
        """Whether it has been sent all that there is, also what is not visible yet."""
        return self.sent >= self.buffer.last_seq

    @property
    def bytes_held(self) -> int:
        return sum(len(frame) + _FRAME_BYTES for _, frame in self._older)

    @property
    def needed_from(self) -> int:
        """The first event that it would miss if the buffer dropped it."""
        return (self.acked if self.acks else self.sent) + 1
