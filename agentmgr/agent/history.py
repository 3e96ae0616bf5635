"""A session's history: what is added to it, what it forgets, and how it is shown with the state.

It is a list that the author may change, or replace, at any time. So nothing is remembered of it here, and
whatever is done with it may raise anything.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .. import jsontext, protocol
from ..boundary import Failure, attempt
from .events import Event
from .limits import ENTRY_BYTES, HISTORY_BYTES, MAX_HISTORY, SHOWN_HISTORY_BYTES, STATE_BYTES, weigh
from .message import Message
from .turn import Turn

Entry = dict[str, Any]

MAX_DEPTH = jsontext.MAX_DEPTH_SAID - 8  # of a value inside an event


def entries(turn: Turn, end: Event) -> list[Entry]:
    """What a turn adds: its message, and its answer if it has one."""
    added = [question(turn.message)]
    if end.event == protocol.FINAL_ANSWER:
        added.append(_entry("assistant", end.content, truncated=bool(end.metadata.get("truncated"))))
    elif streamed := turn.streamed:
        added.append(_entry("assistant", streamed, truncated=turn.truncated) | {"incomplete": True})
    return added


def question(message: Message) -> Entry:
    return _entry("user", message.content)


def trim(history: list[Entry]) -> tuple[int, int]:
    """Makes room for the newest entries. Returns how many older ones went, and the bytes of all others."""
    forgotten = max(0, len(history) - MAX_HISTORY)
    del history[:forgotten]
    size = 0
    for place, entry in enumerate(reversed(history), start=1):
        # Of the newest turn, which stays, each entry is bounded.
        more = weigh(entry, HISTORY_BYTES)
        if size + more > HISTORY_BYTES and place > 2:
            old = len(history) - place + 1
            del history[:old]
            return forgotten + old, size
        size += more
    return forgotten, size


def _entry(role: str, content: Any, *, truncated: bool = False) -> Entry:
    if isinstance(content, str):
        content = str.__str__(content)  # of a `Message`, the text alone
        size = sys.getsizeof(content)
        if size > ENTRY_BYTES:
            content, truncated = content[: len(content) * ENTRY_BYTES // size], True
    elif weigh(content, ENTRY_BYTES) > ENTRY_BYTES:
        content, truncated = "", True
    else:  # as it was said: an answer may be a list that its author goes on to change, or the history itself
        content = json.loads(jsontext.encode(content))
    return {"role": role, "content": content} | ({"truncated": True} if truncated else {})


def show(state: Any, history: Any, forgotten: int) -> dict[str, Any]:
    """What `user.request_state` shows; what JSON cannot say of it is shown as its `repr`.

    What would take long to encode, and so keep other clients waiting, is left out.
    """
    shown: dict[str, Any] = {"state": {}, "history": []}
    plain = attempt(lambda: _plain(state, STATE_BYTES))
    if isinstance(plain, Failure):
        shown["state_left_out"] = "JSON cannot say it"
    elif plain is None:
        shown["state_left_out"] = f"over {STATE_BYTES} bytes"
    else:
        shown["state"] = plain[0]
    newest = attempt(lambda: _newest(history))
    if not isinstance(newest, Failure):
        shown["history"], left_out = newest
        forgotten += left_out
    if forgotten:
        shown["truncated"] = forgotten
    return shown


def _newest(history: Any) -> tuple[list[Any], int]:
    """The newest entries that fit, and how many do not."""
    entries: list[Any] = []
    room = SHOWN_HISTORY_BYTES
    for entry in reversed(history):
        plain = _plain(entry, room)
        if plain is None:
            break
        entries.insert(0, plain[0])
        room -= plain[1]
    return entries, len(history) - len(entries)


def _plain(value: Any, most: int) -> tuple[Any, int] | None:
    """The value as JSON has it, and its length there; None for more than `most`, which is seen before."""
    if weigh(value, most) > most:
        return None
    text = json.dumps(value, default=repr, ensure_ascii=False)
    if jsontext.deeper_than(MAX_DEPTH, text):
        raise jsontext.TooDeep("nested too deep")
    return (json.loads(text, parse_constant=str), len(text)) if len(text) <= most else None
