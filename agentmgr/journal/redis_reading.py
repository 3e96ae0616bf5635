"""What is read of a session in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import schema
from .journal import (
    FRAME_BYTES_LOADED,
    FRAMES_LOADED,
    TURNS_LOADED,
    Frame,
    Question,
    SessionRecord,
    SessionSnapshot,
    StoredFrame,
    TurnRecord,
    TurnStatus,
)
from .reading import TURN_BYTES_LOADED
from .redis_connection import Redis, RedisTrouble, Word
from .redis_keys import Keys

ENTRIES_READ = 64  #: of a stream at once; each has up to `writing.ROW_BYTES`

_FIELDS = (
    "owner",
    "name",
    "created_at",
    "last_seq",
    "last_turn",
    "state",
    "memory",
    "history",
    "history_turn",
    "input_tokens",
    "output_tokens",
    "ended_at",
    "end_reason",
)

Entry = tuple[bytes, Mapping[bytes, bytes] | Sequence[bytes]]


async def load(
    redis: Redis, keys: Keys, session_id: str, *, with_frames: bool = True
) -> SessionSnapshot | None:
    """The session as far as `Held.loaded` has it."""
    fields, used_at, newest, questions = await redis.pipeline(
        [
            ("HMGET", keys.session(session_id), *_FIELDS),
            ("ZSCORE", keys.by_use, session_id),
            ("XREVRANGE", keys.events(session_id), "+", "-", "COUNT", 1),
            ("HGETALL", keys.questions(session_id)),
        ]
    )
    found = dict(zip(_FIELDS, (None if it is None else it.decode() for it in fields), strict=True))
    if found["created_at"] is None:
        return None
    last_seq = max(int(found["last_seq"] or 0), _last_of(newest[0]) if newest else 0)
    ended_at = found["ended_at"]
    record = SessionRecord(
        session_id,
        found["owner"],
        float(found["created_at"]),
        float(used_at or 0),
        found["name"],
        last_seq,
        int(found["last_turn"] or 0),
        found["state"] or "{}",
        found["memory"],
        found["history"],
        int(found["history_turn"] or 0),
        int(found["input_tokens"] or 0),
        int(found["output_tokens"] or 0),
        None if ended_at is None else float(ended_at),
        found["end_reason"],
    )
    first = max(1, record.last_turn - TURNS_LOADED + 1)
    turns = await _turns(redis, keys, session_id, range(record.last_turn, first - 1, -1))
    frames = await _newest(redis, keys, record) if with_frames else []
    return SessionSnapshot(record, turns, frames, [_question(*one) for one in _pairs(questions)])


async def frames(
    redis: Redis, keys: Keys, session_id: str, first: int, last: int, max_bytes: int
) -> Sequence[StoredFrame]:
    """See `Held.frames`."""
    found: list[Frame] = []
    size, after = 0, f"{first}"  # the first entry that ends with it, or later
    is_more = True
    while is_more:
        entries = await redis.call("XRANGE", keys.events(session_id), after, "+", "COUNT", ENTRIES_READ)
        several = [it for entry in entries for it in unpacked(entry) if first <= it.seq <= last]
        is_more = len(entries) == ENTRIES_READ and len(several) > 0
        for frame in await whole(redis, keys, session_id, several):
            if size and size + len(frame.line) > max_bytes:
                is_more = False
                break
            found.append(frame)
            size += len(frame.line)
        after = f"({entries[-1][0].decode()}" if entries else ""
    numbers = sorted({frame.turn for frame in found if frame.turn})
    begun = await redis.call("HMGET", keys.turns(session_id), *numbers) if numbers else ()
    steps = {n: head(text)[0][0] for n, text in zip(numbers, begun, strict=True) if text is not None}
    return [StoredFrame(it.seq, steps.get(it.turn), it.line, it.turn) for it in found]


async def last_seq(redis: Redis, keys: Keys, session_id: str) -> int:
    """Of the last event that is in the stream; 0: none is."""
    newest = await redis.call("XREVRANGE", keys.events(session_id), "+", "-", "COUNT", 1)
    return _last_of(newest[0]) if newest else 0


async def unfinished(redis: Redis, keys: Keys) -> list[tuple[str, str | None]]:
    """The sessions with turns that have not ended, and their holders."""
    members = await redis.call("ZRANGE", keys.unfinished, 0, -1)
    ids = list(dict.fromkeys(member.decode().partition(" ")[0] for member in members))
    holders = await redis.pipeline([("HGET", keys.session(it), "holder") for it in ids])
    return [(it, holder and holder.decode()) for it, holder in zip(ids, holders, strict=True)]


async def whole(redis: Redis, keys: Keys, session_id: str, frames: Sequence[Frame]) -> list[Frame]:
    """With the answers that they refer to."""
    numbers = sorted({frame.turn for frame in frames if schema.ANSWER in frame.line})
    if not numbers:
        return list(frames)
    answers = await redis.call("HMGET", keys.turns(session_id), *(f"{n}:answer" for n in numbers))
    texts = {
        n: schema.content_of(answer and answer.decode()) for n, answer in zip(numbers, answers, strict=True)
    }
    return [
        Frame(it.seq, it.turn, it.line.replace(schema.ANSWER, texts[it.turn]))
        if schema.ANSWER in it.line
        else it
        for it in frames
    ]


def unpacked(entry: Entry) -> list[Frame]:
    """The events of an entry of a stream."""
    id_, fields = entry
    values = dict(_pairs(fields))
    first = int(id_.partition(b"-")[2])
    lines = values[b"l"].split(b"\n")
    return [Frame(first + at, int(values[b"t"]), line) for at, line in enumerate(lines)]


def turn_of(number: int, values: Sequence[bytes | None]) -> TurnRecord | None:
    """`values`: of the fields `turn_fields`."""
    accepted, begun, ended, answer = values
    if accepted is None:
        return None
    (step_id, accepted_at), message = head(accepted)
    status, attempts, started_at = json.loads(begun) if begun else (TurnStatus.WAITING, 0, None)
    ended_by, ended_at = json.loads(ended) if ended else (None, None)
    return TurnRecord(
        number,
        step_id,
        message,
        accepted_at,
        TurnStatus.ENDED if ended else TurnStatus(status),
        attempts,
        started_at,
        ended_at,
        ended_by,
        None if answer is None else answer.decode(),
    )


def turn_fields(number: int) -> tuple[str, str, str, str]:
    return str(number), f"{number}:begun", f"{number}:ended", f"{number}:answer"


async def _turns(redis: Redis, keys: Keys, session_id: str, numbers: Iterable[int]) -> list[TurnRecord]:
    """From the newest on, as many as fit, and those that have not ended; the oldest first."""
    turns: list[TurnRecord] = []
    size = 0
    numbers = list(numbers)
    while numbers:
        some, numbers = numbers[:ENTRIES_READ], numbers[ENTRIES_READ:]
        words: list[Word] = [field for number in some for field in turn_fields(number)]
        values = await redis.call("HMGET", keys.turns(session_id), *words)
        for at, number in enumerate(some):
            turn = turn_of(number, values[4 * at : 4 * at + 4])
            if turn is None:
                continue
            size += len(turn.message) + len(turn.answer or "")
            if size > TURN_BYTES_LOADED and turn.status is TurnStatus.ENDED:
                return turns[::-1]
            turns.append(turn)
    return turns[::-1]


async def _newest(redis: Redis, keys: Keys, record: SessionRecord) -> list[Frame]:
    """The last events, at most `FRAMES_LOADED`, within `FRAME_BYTES_LOADED`."""
    newest: list[Frame] = []
    size, before = 0, "+"
    while True:
        entries = await redis.call(
            "XREVRANGE", keys.events(record.session_id), before, "-", "COUNT", ENTRIES_READ
        )
        several = [frame for entry in entries for frame in reversed(unpacked(entry))]
        for frame in await whole(redis, keys, record.session_id, several):
            size += len(frame.line)
            if len(newest) == FRAMES_LOADED or (newest and size > FRAME_BYTES_LOADED):
                return newest[::-1]
            newest.append(frame)
        if len(entries) < ENTRIES_READ:
            return newest[::-1]
        before = f"({entries[-1][0].decode()}"


def _last_of(entry: Entry) -> int:
    return int(entry[0].partition(b"-")[0])


def head(text: bytes) -> tuple[Any, str]:
    """What is in brackets, and what follows the line break."""
    said, _, rest = text.decode().partition("\n")
    try:
        return json.loads(said), rest
    except ValueError as error:
        raise RedisTrouble(f"what it has is damaged: {error}") from error


def _question(step_id: bytes, text: bytes) -> Question:
    (asked_at,), content = head(text)
    return Question(step_id.decode(), content, asked_at)


def _pairs(found: Mapping[bytes, bytes] | Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Of a hash's fields: Redis has them as a map or as a list, by where they are."""
    if isinstance(found, Mapping):
        return found.items()
    return zip(found[::2], found[1::2], strict=True)
