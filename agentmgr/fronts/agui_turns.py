"""Where in a session's events the runs of AG-UI begin, and which questions are open. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import protocol

Event = Mapping[str, Any]


def run_begins(events: Sequence[Event], run_id: str, running: str | None) -> tuple[int, int] | None:
    """Where in a session's events the turn of a run begins, and where the run does; None: it is not there.

    `running`: the `step_id` of the turn that runs now, of which there may be no event yet.
    """
    for place, event in reversed(list(enumerate(events))):
        content = event.get("content")
        if isinstance(content, Mapping) and content.get("answer_id") == run_id:
            asked = question_at(events[:place], str(event.get("step_id")))
            return None if asked is None else (_turn_begins(events, asked), asked + 1)
        if event.get("step_id") == run_id and event["event"] != protocol.ERROR:
            begins = _turn_begins(events, place)
            return begins, begins
    if run_id == running:
        return _turn_begins(events, len(events)), _turn_begins(events, len(events))
    return None


def question_at(events: Sequence[Event], question: str) -> int | None:
    """The place of the event that asks it."""
    for place, event in enumerate(events):
        if event["event"] == protocol.USER_CONFIRM and event.get("step_id") == question:
            return place
    return None


def settled(events: Sequence[Event], question: str) -> Event | None:
    """What the notice says that the question was answered."""
    for event in events:
        content = event.get("content")
        if event["event"] == protocol.NOTICE and event.get("step_id") == question:
            return content if isinstance(content, Mapping) else {}
    return None


def turn_of(events: Sequence[Event], place: int) -> tuple[int, bool]:
    """Of the event there: where its turn begins, and whether that is over."""
    return _turn_begins(events, place), any(e["event"] in protocol.TURN_ENDS for e in events[place:])


def _turn_begins(events: Sequence[Event], place: int) -> int:
    ends = (n for n in range(place - 1, -1, -1) if events[n]["event"] in protocol.TURN_ENDS)
    return next(ends, -1) + 1
