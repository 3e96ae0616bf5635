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
    scope: trio.CancelScope = Factory(trio.CancelScope)
    ended_by: str | None = None  #: the event by which the client learned of its end
    given_up: bool = False  #: it waited, its client was away, and the host needed the room
    truncated: bool = False  #: more was streamed than is kept
    _streamed: StringIO = field(factory=StringIO, init=False)
    _streamed_bytes: int = field(default=0, init=False)

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

    def give_up(self) -> None:
        """It is not begun any more."""
        self.given_up = True
        self.message, self.size = Message(""), 0
