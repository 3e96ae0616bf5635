"""Makes events and their envelopes, as `agentmgr.protocol` describes them.

An agent may `yield` what the functions at the end make, or pass it to `session.emit`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from attrs import Factory, frozen

from .. import jsontext
from ..protocol import FINAL_ANSWER, PARTIAL_ANSWER, THINKING, TOOL_CALL, TOOL_RESULT, USAGE


@frozen
class Event:
    """One event of an agent, before it has a place in a session."""

    event: str
    content: Any = ""  #: a string, or anything JSON can say
    metadata: Mapping[str, Any] = Factory(dict)
    step_id: str | None = None  #: ties a call to its result; that of the turn when None


def encode(
    event: Event,
    *,
    session_id: str | None = None,
    step_id: str | None = None,
) -> bytes:
    """The JSON text, in UTF-8, of an event. Raises what `jsontext.encode` does."""
    json_of = jsontext.encode
    metadata = json_of(event.metadata) if event.metadata else "{}"
    timestamp = _timestamp(time.time_ns() // 1_000_000)
    # Put together by hand: the encoder has a short cut for strings, which is what nearly all of it is.
    return jsontext.in_utf8(
        f'{{"event":{json_of(event.event)},"session_id":{json_of(session_id)},'
        f'"step_id":{json_of(event.step_id or step_id)},"timestamp":"{timestamp}",'
        f'"content":{json_of(event.content)},"metadata":{metadata}}}'
    )


def compact(event: Event, *, session_id: str, step_id: str | None) -> bytes:
    """The line that a journal keeps of an event of a session, in the turn `step_id`; raises as `encode` does.

    A piece of an answer is its time and its text, which is a third of it; any other event is all of its JSON.
    """
    content = event.content
    short = event.event == PARTIAL_ANSWER and isinstance(content, str) and not event.metadata
    if short and (event.step_id is None or event.step_id == step_id):
        return jsontext.in_utf8(f"{time.time_ns() // 1_000_000} {jsontext.encode(content)}")
    return encode(event, session_id=session_id, step_id=step_id)


def expand(line: bytes, seq: int, *, session_id: str, step_id: str | None) -> bytes:
    """The event of a line, with its place in the session: the same bytes in whatever process."""
    head, event_id = _constants(session_id, step_id)
    if line.startswith(b"{"):
        return b'%b,"seq":%d,"event_id":"%b-%d"}' % (line[:-1], seq, event_id, seq)
    at, _, content = line.partition(b" ")
    return b'%b%b","content":%b,"metadata":{},"seq":%d,"event_id":"%b-%d"}' % (
        head,
        _timestamp(int(at)).encode(),
        content,
        seq,
        event_id,
        seq,
    )


def without_number(text: bytes, seq: int) -> bytes:
    """The line of an event of which the bytes for clients are known."""
    return text[: text.rindex(b',"seq":%d,"event_id":"' % seq)] + b"}"


@lru_cache(maxsize=4096)
def _constants(session_id: str, step_id: str | None) -> tuple[bytes, bytes]:
    """How each piece of an answer begins, and the ids of all events of the session, but for their numbers."""
    json_of = jsontext.encode
    head = jsontext.in_utf8(
        f'{{"event":{json_of(PARTIAL_ANSWER)},"session_id":{json_of(session_id)},'
        f'"step_id":{json_of(step_id)},"timestamp":"'
    )
    return head, b"evt_%b" % sha256(session_id.encode()).hexdigest()[:8].encode()


def _timestamp(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{_date(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=64)
def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


def addressed(text: bytes, connection_id: str) -> bytes:
    """An encoded event on its way out through one connection."""
    return b'{"connection_id":"%b",%b' % (connection_id.encode(), text[1:])


def as_event(item: Any) -> Event:
    """What an author gave as an event: one of ours, or a mapping with an `event` in it."""
    if isinstance(item, Event):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("event"), str):
        return Event(item["event"], item.get("content", ""), item.get("metadata") or {}, item.get("step_id"))
    raise TypeError(f"an agent yields strings and events, not {type(item).__name__}")


def partial_answer(text: str) -> Event:
    """A piece of the answer; joined in order they are the answer."""
    return Event(PARTIAL_ANSWER, text)


def final_answer(content: Any) -> Event:
    """The whole answer, where it is not just what was streamed."""
    return Event(FINAL_ANSWER, content)


def thinking(text: str) -> Event:
    """What goes on before the answer, for a person to see."""
    return Event(THINKING, text)


def tool_call(tool: str, args: Any, *, step_id: str | None = None) -> Event:
    """A tool is about to run; give its `step_id` to `tool_result` too."""
    return Event(TOOL_CALL, {"tool": tool, "args": args}, step_id=step_id)


def tool_result(tool: str, result: Any, *, success: bool = True, step_id: str | None = None) -> Event:
    """A tool has run."""
    return Event(TOOL_RESULT, {"tool": tool, "result": result, "success": success}, step_id=step_id)


def usage(input_tokens: int, output_tokens: int, model: str = "") -> Event:
    """What a call of a model has used; its session adds it up."""
    content = {"input_tokens": input_tokens, "output_tokens": output_tokens, "model": model}
    return Event(USAGE, content)
