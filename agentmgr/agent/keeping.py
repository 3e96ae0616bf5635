"""What of a durable session goes to the journal, and when.

An author's values are read here, so whatever is done with them may raise anything: each has a boundary.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve

from .. import jsontext, protocol
from ..boundary import Failure, attempt, report
from ..journal.journal import (
    TURNS_LOADED,
    Accepted,
    Answered,
    Asked,
    Change,
    Frame,
    Held,
    Kept,
    Question,
    SessionEnded,
    SessionJournal,
    SessionSnapshot,
    Started,
    TurnEnded,
    TurnRecord,
    TurnStatus,
    Used,
)
from .events import Event, expand, without_number
from .history import Entry
from .limits import HISTORY_BYTES, JOURNAL_CHUNK_BYTES, STREAM_BYTES
from .replay import Gap, Reader
from .turn import Turn, Turns

if TYPE_CHECKING:
    from .session import Session
    from .transcript import Transcript

logger = logging.getLogger("agentmgr.agent")

MAX_NOTES = 20


class NotDurable:
    """What the authors' sessions have that JSON cannot say: reported once, and shown in the health report."""

    def __init__(self) -> None:
        self.notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        if note not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes[note] = None
            logger.warning("not durable: %s; when its instance ends, the session goes on without it", note)


class Keeping:
    """The copy of a session that the journal knows, see `journal.Copy`."""

    def __init__(
        self,
        session: Session,
        transcript: Transcript,
        turns: Turns,
        held: Held,
        journal: SessionJournal,
        notes: NotDurable,
    ) -> None:
        self._transcript, self._turns = transcript, turns
        self._session, self._held, self._journal, self._notes = session, held, journal, notes
        self._record = held.loaded.record
        self._state, self._memory = self._record.state, self._record.memory
        self._history: list[Entry] = []  #: as the journal has it
        self._changed: Kept | None = None  # to be committed with the turn's end
        self._ended: deque[tuple[int, TurnRecord]] = deque(maxlen=TURNS_LOADED)  # not surely committed
        self._ended_bytes = 0
        self._open = {question.step_id: question for question in held.loaded.questions}
        self._closed = False
        held.keep(self)

    @property
    def memory(self) -> str | None:
        return self._memory

    # For the journal.

    def committed(self, seq: int) -> None:
        while self._ended and self._ended[0][0] <= seq and self._journal.degraded is None:
            self._ended_bytes -= _size(self._ended.popleft()[1])
        self._transcript.show(seq)

    def lost(self) -> None:
        self._closed = True
        self._session.lose()

    def snapshot(self) -> SessionSnapshot:
        session = self._session
        turns = [turn for _, turn in self._ended]
        turns += [self._record_of(turn) for turn in self._turns.unfinished]
        text = attempt(lambda: _text(list(session.history)))
        state = attempt(lambda: what_json_says(session.state))
        record = evolve(
            self._record,
            last_used_at=time.time(),
            name=session.name,
            last_seq=session.buffer.last_seq,
            last_turn=self._turns.last_number,
            state=self._state if isinstance(state, Failure) else state[0],
            memory=self._memory,
            history="[]" if isinstance(text, Failure) else text,
            history_turn=self._turns.last_number - len(self._turns.unfinished),
            input_tokens=self._transcript.input_tokens,
            output_tokens=self._transcript.output_tokens,
        )
        frames = [Frame(seq, 0, without_number(text, seq)) for seq, text in session.buffer.held()]
        return SessionSnapshot(record, turns, frames, list(self._open.values()))

    # What happens.

    def _write(self, *changes: Change) -> None:
        if not self._closed:
            self._held.write(*changes)

    def accepted(self, turn: Turn) -> None:
        self._write(Accepted(self._record_of(turn)))

    def started(self, turn: Turn) -> None:
        self._write(Started(turn.number, turn.attempts, time.time()))

    def asked(self, step_id: str, content: Mapping[str, Any]) -> None:
        question = self._open[step_id] = Question(step_id, _text(content), time.time())
        self._write(Asked(question))

    def answered(self, step_id: str) -> None:
        if self._open.pop(step_id, None) is not None:
            self._write(Answered(step_id))

    def said(self, seq: int, turn: Turn | None, event: Event, line: bytes, *, last: bool) -> None:
        """`last`: it says that the session has ended."""
        frame = Frame(seq, 0 if turn is None else turn.number, line)
        if last:
            self._write(frame, SessionEnded(str(event.content["reason"]), time.time()))
        elif event.event == protocol.USAGE:
            self._write(frame, Used(*tokens(event.content)))
        else:
            self._write(frame)

    def ended_turn(self, seq: int, turn: Turn, line: bytes, answer: Entry | None) -> None:
        """With the event that says it, and with what the author and a framework keep."""
        assert turn.ended_by is not None
        said = None if answer is None else _text(answer)
        ended = TurnEnded(turn.number, turn.ended_by, said, time.time())
        record = evolve(
            self._record_of(turn),
            status=TurnStatus.ENDED, ended_at=ended.at, ended_by=ended.ended_by, answer=said,
        )  # fmt: skip
        self._ended.append((seq, record))
        self._ended_bytes += _size(record)
        if self._ended_bytes > HISTORY_BYTES:
            # While the journal cannot be written: how they ended is enough, the history is in the snapshot.
            self._ended = deque(((seq, _without_text(it)) for seq, it in self._ended), maxlen=TURNS_LOADED)
            self._ended_bytes = sum(_size(it) for _, it in self._ended)
        self._write(Frame(seq, turn.number, line), ended, *self._changes())

    # What the author and a framework keep.

    def look(self, state: Any, memory: str | None) -> str | None:
        """Takes what has changed for the next commit. Why it does not, if the state is too large."""
        read = attempt(lambda: what_json_says(state))
        if isinstance(read, Failure):
            self._notes.add("session.state cannot be read")
            report("session.state cannot be read", read.error)
            read = self._state, []
        text, notes = read
        for note in notes:
            self._notes.add(note)
        size, limit = len(text.encode()), self._session.limits.state_max_bytes
        if size > limit:
            return f"session.state has {size} bytes as JSON, {limit} are allowed (state_max_bytes)"
        before = self._changed or Kept()
        if text != self._state:
            self._state, before = text, evolve(before, state=text)
        if memory is not None and memory != self._memory:
            self._memory, before = memory, evolve(before, memory=memory)
        self._changed = None if before == Kept() else before
        return None

    def put_back(self, state: dict[str, Any]) -> None:
        """The state as it is kept, in place of one that is too large; what JSON cannot say stays."""
        rest = {name: value for name, value in state.items() if _unsayable(name, value, "")}
        state.clear()
        state.update(json.loads(self._state), **rest)

    def prevail(self, session: Session) -> None:
        """What was kept counts, and not what `on_session_start` has set anew, as it does for each session."""
        attempt(lambda: session.state.update(json.loads(self._state)))
        changed = attempt(lambda: self.is_changed(session.history))
        if changed is not False:
            session.history = [dict(entry) for entry in self._history]

    def flush(self) -> None:
        """What has changed after the turn's end."""
        if changes := self._changes():
            self._write(*changes)

    def _changes(self) -> tuple[Kept, ...]:
        changed, self._changed = self._changed, None
        return () if changed is None else (changed,)

    def knows(self, history: list[Entry]) -> None:
        """The journal has it, once all is committed."""
        self._history = [dict(entry) for entry in history]

    def is_changed(self, history: Any) -> bool:
        """Whether an author did more to it than we did."""
        return bool(history != self._history)

    def added(self, entries: list[Entry], forgotten: int) -> None:
        """A turn's entries, and so many older ones were dropped: the journal has both by the turn."""
        self._history += [dict(entry) for entry in entries]
        del self._history[:forgotten]

    def keep_history(self, history: list[Entry], turn: int) -> None:
        """The whole of it, after an author has changed it."""
        text = attempt(lambda: _text(history))
        if isinstance(text, Failure):
            notes = (_unsayable("content", entry, f"session.history[{place}]") for place, entry in
                     enumerate(history))  # fmt: skip
            self._notes.add(next(filter(None, notes), "session.history cannot be read"))
        else:
            self._changed = evolve(self._changed or Kept(), history=text, history_turn=turn)
            self.knows(history)

    # Reading and giving up.

    async def fill(self, reader: Reader) -> Gap | None:
        """Gives a reader the next of the events that are not in memory any more."""
        first = reader.sent + 1
        last = min(reader.buffer.first_seq - 1, reader.buffer.visible)
        return reader.fill(await self._events(first, last, JOURNAL_CHUNK_BYTES), last)

    async def said_in(self, turn: Turn, newest: list[bytes]) -> list[bytes]:
        """All events of the last turn; `newest` are the session's newest."""
        texts, first = newest, self._record.last_seq - len(newest) + 1
        while first > 1 and (not texts or json.loads(texts[0])["step_id"] == turn.step_id):
            start = max(1, first - 4096)
            older = await self._events(start, first - 1, STREAM_BYTES)
            if not older:  # numbers that were left out: a client had more than the journal
                break
            texts, first = [*(text for _, text in older), *texts], start
        return texts

    async def _events(self, first: int, last: int, max_bytes: int) -> list[tuple[int, bytes]]:
        stored = await self._held.frames(first, last, max_bytes=max_bytes)
        session_id = self._session.id
        return [(it.seq, expand(it.line, it.seq, session_id=session_id, step_id=it.step_id)) for it in stored]

    async def settled(self) -> None:
        await self._held.settled()

    async def release(self) -> None:
        if not self._closed:
            self.flush()
            self._closed = True
            await self._held.release()

    def _record_of(self, turn: Turn) -> TurnRecord:
        return TurnRecord(
            turn.number,
            turn.step_id,
            _text({"content": turn.message.content, "metadata": turn.message.metadata}),
            turn.accepted_at,
            TurnStatus.RUNNING if turn.started_at else TurnStatus.WAITING,
            turn.attempts,
            turn.started_at or None,
        )


def tokens(content: Any) -> tuple[int, int]:
    """Those of an `agent.usage`: in and out; 0 for what is no number."""
    fields = content if isinstance(content, Mapping) else {}
    found = (fields.get("input_tokens"), fields.get("output_tokens"))
    counts = [count if type(count) is int and 0 <= count < 2**53 else 0 for count in found]
    return counts[0], counts[1]


def what_json_says(state: Any) -> tuple[str, list[str]]:
    """The JSON text of a state, and notes on what is left out because JSON cannot say it.

    An entry is there whole or not at all: one that came back in another shape would surprise its author.
    """
    text = attempt(lambda: _text(state))
    if isinstance(text, str) and json.loads(text) == state:
        return text, []
    sayable, notes = {}, []
    for name, value in state.items():
        note = _unsayable(name, value, "session.state")
        if note:
            notes.append(note)
        else:
            sayable[name] = value
    return _text(sayable), notes


def _unsayable(name: Any, value: Any, where: str, depth: int = jsontext.MAX_DEPTH_SAID - 8) -> str | None:
    """What JSON cannot say of an entry, by its path."""
    path = f"{where}[{name!r}]"
    if not isinstance(name, str):
        return f"{path} has no string for its name"
    return _unsayable_value(value, path, depth)


def _unsayable_value(value: Any, path: str, depth: int) -> str | None:
    if depth == 0:
        return f"{path[:100]}… is nested too deep"
    if isinstance(value, Mapping):
        if not isinstance(value, dict):
            return f"{path} is a {type(value).__name__}"
        notes = (_unsayable(name, item, path, depth - 1) for name, item in value.items())
    elif isinstance(value, list | tuple):
        notes = (_unsayable_value(item, f"{path}[{i}]", depth - 1) for i, item in enumerate(value))
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}"
    elif value is None or isinstance(value, str | int | float | bool):
        return None
    else:
        return f"{path} is a {type(value).__name__}"
    return next(filter(None, notes), None)


def history_text(history: list[Entry]) -> str | None:
    """What a session begins with, as the journal has it."""
    return _text(history) if history else None


def _text(value: Any) -> str:
    """JSON text without half of a character, which no database takes. Raises what `jsontext.encode` does."""
    return jsontext.in_utf8(jsontext.encode(value)).decode()


def _size(turn: TurnRecord) -> int:
    return len(turn.message) + len(turn.answer or "")


def _without_text(turn: TurnRecord) -> TurnRecord:
    return evolve(turn, message='{"content":""}', answer=None)
