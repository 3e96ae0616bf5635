"""What is said in a session: numbered, handed to the journal if there is one, and read by connections."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve

from .. import protocol
from .events import Event, compact, expand
from .history import Entry
from .keeping import Keeping, tokens
from .limits import SessionLimits
from .readers import Readers
from .replay import Gap, Reader, ReplayBuffer
from .turn import Turn, Turns

ENVELOPE_BYTES = 512  #: what an event has beside its content, at most


class Transcript:
    def __init__(
        self,
        session_id: str,
        limits: SessionLimits,
        turns: Turns,
        remember: Callable[[Turn, Event], Entry | None],
    ) -> None:
        """`remember` adds a turn that has ended to the history, and returns the entry of its answer."""
        self.buffer = ReplayBuffer(max_events=limits.buffer_events, max_bytes=limits.buffer_bytes)
        self.readers = Readers(self.buffer)
        self.keeping: Keeping | None = None  #: None: it is in memory only
        self.lost = False  #: another instance holds the session: nothing that is said here counts
        self.input_tokens = self.output_tokens = 0
        self._session_id, self._turns, self._remember = session_id, turns, remember

    def line(self, event: Event) -> bytes:
        """What `append` takes. Raises what `jsontext.encode` does."""
        turn = self._turns.current
        if turn is not None and event.event in protocol.TURN_ENDS:
            event = evolve(event, step_id=turn.step_id)  # how a client knows which of its messages it ends
        return compact(event, session_id=self._session_id, step_id=turn.step_id if turn else None)

    def has_room(self, line: bytes) -> bool:
        """Whether no connected client, and no journal, is so far behind that an event would be lost."""
        return not self.readers.must_wait(len(line) + ENVELOPE_BYTES)

    async def have_room(self, line: bytes) -> None:
        await self.readers.wait_for_room(len(line) + ENVELOPE_BYTES)

    def append(self, event: Event, line: bytes, *, last: bool) -> bool:
        """Numbers an event and keeps it; False where it is not said: a turn that has ended says no more.

        `last`: it says that the session has ended.
        """
        turn = self._turns.current
        if self.lost or (turn is not None and turn.is_over):
            return False
        seq = self.buffer.last_seq + 1
        step_id = turn.step_id if turn is not None else None
        self.buffer.append(expand(line, seq, session_id=self._session_id, step_id=step_id))
        name = event.event
        if turn is not None and name in protocol.TURN_ENDS:
            turn.ended_by = name
            answer = self._remember(turn, event)
            if self.keeping is not None:
                self.keeping.ended_turn(seq, turn, line, answer)
            return True
        if name == protocol.PARTIAL_ANSWER:
            if turn is not None and isinstance(event.content, str):
                turn.stream(event.content)
        elif name == protocol.USAGE:
            more = tokens(event.content)
            self.input_tokens, self.output_tokens = self.input_tokens + more[0], self.output_tokens + more[1]
        if self.keeping is not None:
            self.keeping.said(seq, turn, event, line, last=last)
        return True

    def show(self, seq: int) -> None:
        """All events up to `seq` are committed."""
        self.buffer.show(seq)
        self.readers.wake()
        self.readers.moved()

    async def fill(self, reader: Reader) -> Gap | None:
        """Gives a reader what is not in memory any more; the gap where the journal has nothing either."""
        assert self.keeping is not None
        return await self.keeping.fill(reader)
