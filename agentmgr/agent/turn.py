"""A turn: one message, and what becomes of it."""

from __future__ import annotations

from io import StringIO

import trio
from attrs import Factory, define, field

from .limits import STREAM_BYTES
from .message import Message


@define(eq=False)
class Turn:
    """One message and the work on its answer."""

    message: Message
    step_id: str
    size: int = 0
    number: int = 0  #: 1, 2, 3 … in its session
    attempts: int = 0  #: how often it was begun
    accepted_at: float = 0.0  #: Unix times, for the journal
    started_at: float = 0.0
    scope: trio.CancelScope = Factory(trio.CancelScope)
    ended_by: str | None = None  #: the event by which the client learned of its end
    lost: bool = False  #: it ran when its instance died, and is not to run again
    left: bool = False  #: it is to run again elsewhere: here it says no more
    given_up: bool = False  #: it waited, its client was away, and the host needed the room
    truncated: bool = False  #: more was streamed than is kept
    _streamed: StringIO = field(factory=StringIO, init=False)
    _streamed_bytes: int = field(default=0, init=False)

    @property
    def is_over(self) -> bool:
        """Whether nothing that it says counts any more."""
        return self.ended_by is not None or self.left

    @property
    def bytes_held(self) -> int:
        return self.size + self._streamed_bytes

    @property
    def streamed(self) -> str:
        """The partial answers, joined."""
        return self._streamed.getvalue()

    def stream(self, text: str) -> None:
        """Keeps a partial answer, as far as there is room for it: a turn may stream without end."""
        if self.truncated:
            return
        text = str.__str__(text)  # of a subclass, its text alone
        width = 1 if text.isascii() else 4
        kept = text[: (STREAM_BYTES - self._streamed_bytes) // width]
        self.truncated = len(kept) < len(text)
        self._streamed.write(kept)
        self._streamed_bytes += width * len(kept)

    def begin_anew(self) -> None:
        """What was streamed before does not count."""
        self._streamed, self._streamed_bytes, self.truncated = StringIO(), 0, False

    def give_up(self) -> None:
        """It is not begun any more."""
        self.given_up = True
        self.message, self.size = Message(""), 0
