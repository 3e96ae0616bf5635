"""What waits to be written to one client and is in no session's sequence: bounded, and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from .budget import Budget
from .incoming import ClientEvent
from .limits import MAX_CONTROL_BYTES, STATE_PAUSE_S
from .session import Session


class Answers:
    """A queue of frames. Its share of the budget is what waits in it, and what is being written."""

    def __init__(self, budget: Budget) -> None:
        self._frames: deque[bytes] = deque()
        self._waiting = self._written = 0  # bytes
        self._popped = trio.Event()
        self._share = budget.share()

    @property
    def size_bytes(self) -> int:
        return self._waiting

    def append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._count(len(frame))

    def pop(self) -> bytes | None:
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._count(-len(frame))
        self._popped.set()
        return frame

    async def have_room(self) -> None:
        """Waits while a client that does not read has as many as it may."""
        while self._waiting >= MAX_CONTROL_BYTES:
            if self._popped.is_set():
                self._popped = trio.Event()
            await self._popped.wait()

    def now_written(self, size: int) -> None:
        """So much is on its way into the socket, of sessions' events too."""
        self._written = size
        self._count(0)

    def close(self) -> None:
        self._share.hold(0)

    def _count(self, more: int) -> None:
        self._waiting += more
        self._share.hold(self._waiting + self._written)


class StateRequests:
    """Who asks for state again within a moment gets one answer: to encode it keeps other clients waiting."""

    def __init__(self, tell: Callable[[Session, ClientEvent], None], answers: Answers) -> None:
        self._tell = tell
        self._answers = answers
        self._asked: dict[Session, ClientEvent] | None = None  # None: there was no answer just now

    def add(self, session: Session, event: ClientEvent, nursery: trio.Nursery) -> None:
        if self._asked is None:
            self._asked = {}
            self._tell(session, event)
            nursery.start_soon(self._tell_later)
        else:
            self._asked[session] = event

    async def _tell_later(self) -> None:
        await trio.sleep(STATE_PAUSE_S)
        while self._asked:
            asked, self._asked = self._asked, {}
            for session, event in asked.items():
                await self._answers.have_room()
                self._tell(session, event)
            await trio.sleep(STATE_PAUSE_S)
        self._asked = None
