"""A conversation that is taken up, as updates: what its events say, and between them the user's messages.

Events have no messages of the user. That of the turn that runs is in the state, as `turn`. Those of turns
that have ended are in its history, which is compared with the events from the newest turn back. Where it does
not fit any more, or begins earlier than the events do, it is all that is shown: its author may have changed
it, and of a session in memory the older events are gone.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field

from .. import protocol
from ..client.events import AgentEvent
from .updates import Update, Updates, agent_chunk, joined, user_chunk

_Entry = Mapping[str, Any]


@define
class _Turn:
    events: list[AgentEvent] = field(factory=list)
    message: _Entry | None = None

    @property
    def end(self) -> AgentEvent | None:
        return self.events[-1] if self.events and self.events[-1].event in protocol.TURN_ENDS else None

    @property
    def step_id(self) -> str | None:
        """None where it has not ended: others than its end may have ids of their own."""
        return self.end.step_id if self.end is not None else None

    @property
    def has_streamed(self) -> bool:
        return any(event.event == protocol.PARTIAL_ANSWER for event in self.events)


def replay(events: Iterable[AgentEvent], state: Mapping[str, Any]) -> tuple[list[Update], Updates]:
    """`state`: as `agent.state_exported` has it. Also what the session's next events go to."""
    turns = _turns(events)
    running: _Entry | None = state.get("turn")
    # What its author has made of it need not be entries.
    history = [entry for entry in state.get("history", ()) if isinstance(entry, Mapping)]
    shown, place = len(turns), len(history)
    for number in reversed(range(len(turns))):
        turn = turns[number]
        if running is not None and turn.step_id in (None, running["step_id"]):
            turn.message, running = running, None
        elif (found := _place_in(history, place, turn)) is not None:
            place, turn.message = found
        elif place:
            break
        shown = number
    updates = Updates()
    said = [update for entry in history[:place] for update in _chunk(entry)]
    for number, turn in enumerate(turns):
        made = [update for event in turn.events for update in updates.feed(event)]
        if number >= shown:
            said += user_chunk(turn.message["content"]) if turn.message is not None else []
            said += made
    if running is not None:
        said += user_chunk(running["content"])
    return joined(said), updates


def _turns(events: Iterable[AgentEvent]) -> list[_Turn]:
    turns = [_Turn()]
    for event in events:
        turns[-1].events.append(event)
        if event.event in protocol.TURN_ENDS:
            turns.append(_Turn())
    return turns if turns[-1].events else turns[:-1]


def _place_in(history: Sequence[_Entry], place: int, turn: _Turn) -> tuple[int, _Entry | None] | None:
    """Where the history's entries of this turn begin, and its message; None where they are not there."""
    if turn.end is None and not turn.has_streamed:
        return place, None  # nothing of a turn, or of one that has said nothing yet
    if turn.end is None or turn.end.event == protocol.FINAL_ANSWER or turn.has_streamed:
        if not place or not _is_answer(history[place - 1], turn.end):
            return None if turn.end is not None else (place, None)
        place -= 1
    if place and history[place - 1].get("role") == "user":
        return place - 1, history[place - 1]
    return place, None


def _is_answer(entry: _Entry, end: AgentEvent | None) -> bool:
    if entry.get("role") != "assistant":
        return False
    if end is None or end.event != protocol.FINAL_ANSWER or entry.get("truncated"):
        return True
    return bool(entry.get("content") == end.content)


def _chunk(entry: _Entry) -> list[Update]:
    chunk = user_chunk if entry.get("role") == "user" else agent_chunk
    return chunk(entry.get("content"))
