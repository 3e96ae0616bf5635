"""A turn: one message, and what becomes of it; and the turns of a session that have not ended."""

from __future__ import annotations

import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from io import StringIO

import trio
from attrs import Factory, define, field

from ..models.host_config import WhenBusy
from ..protocol import ErrorCode
from .incoming import BadInput
from .limits import MAX_QUEUED, QUEUE_BYTES, REMEMBERED_STEPS, STREAM_BYTES
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


class Turns:
    """In the order of their messages; the first is worked on."""

    def __init__(self) -> None:
        self.last_number = 0
        self.current: Turn | None = None  #: the first
        self._turns: deque[Turn] = deque()
        self._steps: deque[int] = deque(maxlen=REMEMBERED_STEPS)  # hashes: an id may be long

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._turns)

    def __getitem__(self, place: int) -> Turn:
        return self._turns[place]

    @property
    def unfinished(self) -> list[Turn]:
        return [turn for turn in self._turns if turn.ended_by is None]

    @property
    def bytes_held(self) -> int:
        held = 0
        for turn in self._turns:
            held += turn.bytes_held
        return held

    def check(self, step_id: str | None, size: int, when_busy: WhenBusy, *, queue: bool = True) -> None:
        """Raises `BadInput` for a message that is not taken: `busy`, `queue_full`, `duplicate`."""
        if step_id is not None and hash(step_id) in self._steps:
            raise BadInput(ErrorCode.DUPLICATE, "a message with this step_id was taken before")
        rejects = when_busy is WhenBusy.REJECT and bool(self._turns)
        would_wait = when_busy is WhenBusy.QUEUE and any(not turn.is_over for turn in self._turns)
        if rejects or (would_wait and not queue):
            raise BadInput(ErrorCode.BUSY, "a turn is running; send the message again when it has ended")
        if len(self._turns) > MAX_QUEUED:
            raise BadInput(ErrorCode.QUEUE_FULL, f"{MAX_QUEUED} messages wait already")
        if self._turns and size + sum(turn.size for turn in self._turns) > QUEUE_BYTES:
            raise BadInput(ErrorCode.QUEUE_FULL, f"the waiting messages would be over {QUEUE_BYTES} bytes")

    def add(self, message: Message, step_id: str | None, size: int) -> Turn:
        self._steps.append(hash(step_id or ""))
        self.last_number += 1
        turn = Turn(message, step_id or f"turn_{secrets.token_hex(8)}", size, self.last_number)
        turn.accepted_at = time.time()
        self._turns.append(turn)
        self.current = self._turns[0]
        return turn

    def restore(self, turns: Iterable[Turn], steps: Iterable[str], last_number: int) -> None:
        self._turns.extend(turns)
        self.current = self._turns[0] if self._turns else None
        self._steps.extend(hash(step_id) for step_id in steps)
        self.last_number = last_number

    def set_deadline(self, deadline: float) -> None:
        """When they are cancelled, in trio's time."""
        for turn in self._turns:
            turn.scope.deadline = deadline

    def give_up_waiting(self) -> None:
        for turn in list(self._turns)[1:]:
            turn.give_up()

    def next(self) -> None:
        """The first has ended."""
        self._turns.popleft()
        self.current = self._turns[0] if self._turns else None

    def clear(self) -> None:
        self._turns.clear()
        self.current = None


def size_of(message: Message, size: int) -> int:
    """What it takes in memory, with a content of `size` bytes."""
    return size + sys.getsizeof(message)
