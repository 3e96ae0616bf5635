"""The changes of sessions as the commands that make them in Redis; a script runs them where they are due.

Beside those of Redis, `redis_scripts` knows a few of its own: KEEP FIELD TEXT …, NAME FIELD, ASKED, which
closes all questions, and ENDED, which also frees the name and leaves no turn unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve

from .journal import (
    Accepted,
    Answered,
    Asked,
    Change,
    Frame,
    Kept,
    Question,
    SessionEnded,
    SessionRecord,
    SessionSnapshot,
    Started,
    TurnEnded,
    TurnRecord,
    TurnStatus,
    Used,
)
from .redis_connection import Word
from .redis_keys import Keys, name_field
from .writing import Place, Released, rows

Command = Sequence[Word]

ENTRY_BYTES = 60  #: that an entry of a stream takes beside its lines, about
SESSION_BYTES = 600  #: that a session takes beside what is said in it: its keys, its places in sorted sets


def creation(keys: Keys, record: SessionRecord, holder: str, epoch: int) -> list[Command]:
    """The row of a session; its name is taken, unless another one has it."""
    key = keys.session(record.session_id)
    commands: list[Command] = [("HSET", key, "holder", holder, "epoch", epoch, *_fields(record))]
    commands += _name(keys, record)
    commands += _used(keys, record, record.last_used_at)
    kept = Kept(record.state, record.memory, record.history, record.history_turn)
    commands += _commands(keys, record.session_id, kept)
    return commands


def changes(keys: Keys, place: Place, several: Sequence[Change | Released]) -> list[Command]:
    """What a holder hands over, in its order; the events last."""
    record, used_at = place.record, 0.0
    fields: list[Word] = []
    commands: list[Command] = []
    last_seq = 0
    for change in several:
        match change:
            case Frame(seq=last_seq):
                continue
            case Accepted(turn):
                used_at = turn.accepted_at
                fields += ("last_turn", turn.number)
            case TurnEnded(at=used_at):
                pass
            case SessionEnded(reason, at):
                used_at = at
                fields += ("ended_at", repr(at), "end_reason", reason)
            case Released(at=used_at):
                pass
        commands += _commands(keys, record.session_id, change)
    if commands:
        if last_seq:
            fields += ("last_seq", last_seq)
        if fields:
            commands.insert(0, ("HSET", keys.session(record.session_id), *fields))
        if used_at:
            commands += _used(keys, record, used_at, "GT")
    return commands + list(_events(keys, place, several))


def whole(keys: Keys, place: Place, snapshot: SessionSnapshot, last_seq: int) -> list[Command]:
    """A session as its copy has it; Redis has its events up to `last_seq`."""
    last_turn = max((turn.number for turn in snapshot.turns), default=0)
    record = evolve(snapshot.record, last_turn=max(snapshot.record.last_turn, last_turn))
    id_ = record.session_id
    commands: list[Command] = [("HSET", keys.session(id_), *_fields(record))]
    commands += _used(keys, record, record.last_used_at)
    if not place.row:
        commands += _name(keys, record)
    commands += _commands(keys, id_, Kept(record.state, record.memory, record.history, record.history_turn))
    for turn in snapshot.turns:
        commands += _commands(keys, id_, Accepted(turn))
    commands.append(("ASKED",))
    for question in snapshot.questions:
        commands += _commands(keys, id_, Asked(question))
    commands += _events(keys, place, [frame for frame in snapshot.frames if frame.seq > last_seq])
    if record.ended_at is not None:
        commands += _commands(keys, id_, SessionEnded(record.end_reason or "", record.ended_at))
    return commands


def size_of(several: Iterable[Command]) -> int:
    """Bytes that they add, about; those of KEEP are counted where they replace others."""
    size = 0
    for command in several:
        if command[0] == "XADD":
            size += len(command[-1]) + ENTRY_BYTES  # type: ignore[arg-type]  # its lines are bytes
        elif command[0] == "HSET" and ":events:" not in str(command[1]):
            size += sum(len(word) for word in command[3::2] if isinstance(word, str))
    return size


def packed(several: Sequence[Command], more_bytes: int = 0) -> Iterator[Word]:
    """As the scripts read the changes of a session."""
    yield size_of(several) + more_bytes
    yield len(several)
    for command in several:
        yield len(command)
        yield from command


def _commands(keys: Keys, id_: str, change: Change | Released) -> list[Command]:
    match change:
        case Accepted(turn):
            return _turn(keys, id_, turn)
        case Started(turn, attempts, at):
            begun = json.dumps([TurnStatus.RUNNING, attempts, at])
            return [("HSET", keys.turns(id_), f"{turn}:begun", begun)]
        case TurnEnded(turn, ended_by, answer, at):
            fields = [f"{turn}:ended", json.dumps([ended_by, at])]
            if answer is not None:
                fields += [f"{turn}:answer", answer]
            return [("HSET", keys.turns(id_), *fields), ("ZREM", keys.unfinished, f"{id_} {turn}")]
        case Asked(Question(step_id, content, asked_at)):
            return [
                ("HSET", keys.questions(id_), step_id, f"{json.dumps([asked_at])}\n{content}"),
                ("ZADD", keys.asked, repr(asked_at), f"{id_} {step_id}"),
            ]
        case Answered(step_id):
            return [("HDEL", keys.questions(id_), step_id), ("ZREM", keys.asked, f"{id_} {step_id}")]
        case Kept(state, memory, history, history_turn):
            kept: list[Word] = []
            for name, text in (("state", state), ("memory", memory), ("history", history)):
                if text is not None:
                    kept += (name, text)
            if history is not None:
                kept += ("history_turn", str(history_turn))
            return [("KEEP", *kept)] if kept else []
        case Used(input_tokens, output_tokens):
            key = keys.session(id_)
            return [
                ("HINCRBY", key, "input_tokens", input_tokens),
                ("HINCRBY", key, "output_tokens", output_tokens),
            ]
        case SessionEnded():
            return [("HDEL", keys.session(id_), "holder"), ("ENDED",)]
        case Released():
            return [("HDEL", keys.session(id_), "holder")]
    return []


def _turn(keys: Keys, id_: str, turn: TurnRecord) -> list[Command]:
    """In the place of what there was of it, but for an answer, which an event may refer to."""
    number = turn.number
    fields = [str(number), f"{json.dumps([turn.step_id, turn.accepted_at])}\n{turn.message}"]
    absent = []
    if turn.attempts or turn.started_at is not None or turn.status is TurnStatus.RUNNING:
        begun = json.dumps([turn.status, turn.attempts, turn.started_at])
        fields += [f"{number}:begun", begun]
    else:
        absent.append(f"{number}:begun")
    if turn.status is TurnStatus.ENDED:
        fields += [f"{number}:ended", json.dumps([turn.ended_by, turn.ended_at])]
    else:
        absent.append(f"{number}:ended")
    if turn.answer is not None:
        fields += [f"{number}:answer", turn.answer]
    commands: list[Command] = [("HSET", keys.turns(id_), *fields)]
    if absent:
        commands.append(("HDEL", keys.turns(id_), *absent))
    if turn.status is TurnStatus.ENDED:
        commands.append(("ZREM", keys.unfinished, f"{id_} {number}"))
    else:
        commands.append(("ZADD", keys.unfinished, 0, f"{id_} {number}"))
    return commands


def _events(keys: Keys, place: Place, several: Sequence[Change | Released]) -> Iterator[Command]:
    key = keys.events(place.record.session_id)
    for _, _, first, last, turn, lines in rows(place, several):
        yield "XADD", key, f"{last}-{first}", "t", turn, "l", lines


def _used(keys: Keys, record: SessionRecord, at: float, *flags: str) -> Iterator[Command]:
    yield "ZADD", keys.by_use, *flags, repr(at), record.session_id
    if record.owner is not None:
        yield "ZADD", keys.by_use_of(record.owner), *flags, repr(at), record.session_id


def _name(keys: Keys, record: SessionRecord) -> Iterator[Command]:
    if record.name is not None:
        yield "HSET", keys.session(record.session_id), "name", record.name
        yield "NAME", name_field(record.owner, record.name)


def _fields(record: SessionRecord) -> Iterator[Word]:
    yield from ("created_at", repr(record.created_at), "last_seq", record.last_seq)
    yield from ("last_turn", record.last_turn, "input_tokens", record.input_tokens)
    yield from ("output_tokens", record.output_tokens)
    if record.owner is not None:
        yield from ("owner", record.owner)
    if record.ended_at is not None:
        yield from ("ended_at", repr(record.ended_at), "end_reason", record.end_reason or "")
