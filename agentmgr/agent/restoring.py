"""A session as its journal has it, read: what a new copy of it begins with. No I/O, and no clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from ..journal.journal import SessionSnapshot, TurnRecord, TurnStatus
from ..models.host_config import OnCrash
from ..protocol import NOTICE, PARTIAL_ANSWER, NoticeCode
from . import history
from .events import Event, expand
from .history import Entry
from .limits import REMEMBERED_STEPS, SessionLimits, weigh
from .message import Message
from .turn import Turn, size_of

RESTARTED = Event(
    NOTICE,
    {
        "code": NoticeCode.TURN_RESTARTED,
        "message": "the instance died in this turn: it runs again, and what it streamed does not count",
    },
)


@frozen
class Restored:
    state: dict[str, Any]
    history: list[Entry]
    history_bytes: int
    forgotten: int  #: entries that the session had and `history` has not
    frames: list[bytes]  #: the newest events, without a hole, up to the last one
    turns: list[Turn]  #: those that have not ended; one that ran when its instance died comes first
    steps: list[str]  #: the ids of the last messages


def read(snapshot: SessionSnapshot, limits: SessionLimits) -> Restored:
    record = snapshot.record
    steps = {turn.number: turn.step_id for turn in snapshot.turns}
    entries = json.loads(record.history or "[]")
    ended = [turn for turn in snapshot.turns if turn.status is TurnStatus.ENDED]
    kept = [turn for turn in ended if turn.number > record.history_turn]
    first = kept[0].number if kept else record.last_turn + 1
    for turn in kept:
        entries.append(history.question(_message_of(turn)))
        if turn.answer is not None:
            entries.append(json.loads(turn.answer))
    forgotten, size = history.trim(entries)
    frames: list[bytes] = []
    for frame in reversed(snapshot.frames):
        if frame.seq != record.last_seq - len(frames) or (frame.turn and frame.turn not in steps):
            break
        step_id = steps.get(frame.turn)
        frames.append(expand(frame.line, frame.seq, session_id=record.session_id, step_id=step_id))
    frames.reverse()
    return Restored(
        state=json.loads(record.state),
        history=entries,
        history_bytes=size,
        forgotten=forgotten + (0 if record.history else max(0, 2 * (first - 1 - record.history_turn))),
        frames=frames,
        turns=[_turn_of(turn, limits) for turn in snapshot.turns if turn.status is not TurnStatus.ENDED],
        steps=[turn.step_id for turn in snapshot.turns[-REMEMBERED_STEPS:]],
    )


def streamed_before(turn: Turn, events: Sequence[bytes]) -> None:
    """Has `turn` say again, for the history, what it said in these events of its session."""
    for text in events:
        event = json.loads(text)
        if event["step_id"] != turn.step_id:
            continue
        if event["event"] == PARTIAL_ANSWER and isinstance(event["content"], str):
            turn.stream(event["content"])
        elif event["event"] == NOTICE and event["content"].get("code") == NoticeCode.TURN_RESTARTED:
            turn.begin_anew()


def _message_of(turn: TurnRecord) -> Message:
    said = json.loads(turn.message)
    return Message(said["content"], said.get("metadata"))


def _turn_of(record: TurnRecord, limits: SessionLimits) -> Turn:
    message = _message_of(record)
    turn = Turn(
        message,
        record.step_id,
        size_of(message, weigh(message.content) + weigh(dict(message.metadata))),
        record.number,
    )
    turn.attempts, turn.accepted_at = record.attempts, record.accepted_at
    ran = record.status is TurnStatus.RUNNING
    turn.lost = ran and not (limits.on_crash is OnCrash.RETRY and record.attempts < limits.max_turn_attempts)
    return turn
