"""The questions of a session that wait for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from attrs import Factory, define

from ..protocol import NOTICE, ErrorCode, NoticeCode
from .events import Event
from .incoming import BadInput
from .limits import MAX_ID_CHARS
from .message import Decision


@define(eq=False)
class OpenQuestion:
    answered: trio.Event = Factory(trio.Event)
    decision: Decision = Factory(lambda: Decision(False))


class Questions:
    def __init__(self) -> None:
        self._open: dict[str, OpenQuestion] = {}

    @property
    def oldest(self) -> str | None:
        """Its `step_id`."""
        return next(iter(self._open), None)

    def open(self, step_id: str) -> OpenQuestion:
        question = self._open[step_id] = OpenQuestion()
        return question

    def close(self, step_id: str) -> None:
        self._open.pop(step_id, None)

    def answer(self, step_id: str, content: Any) -> Event:
        """The first answer counts; returns the event that says so.

        Raises `BadInput`: `unknown_step`, `invalid_field`.
        """
        fields = content if isinstance(content, Mapping) else {"confirmed": content}
        approved = fields.get("confirmed", fields.get("approved"))
        if not isinstance(approved, bool):
            raise BadInput(ErrorCode.INVALID_FIELD, "content.confirmed must be true or false")
        question = self._open.pop(step_id, None)
        if question is None:
            raise BadInput(
                ErrorCode.UNKNOWN_STEP,
                "no question with this step_id is open: it has been answered, or its turn has ended",
            )
        question.decision = Decision(approved, fields)
        question.answered.set()
        how = f"the answer was {'yes' if approved else 'no'}"
        answer_id = fields.get("answer_id")
        return settled(step_id, approved, how, answer_id if isinstance(answer_id, str) else None)


def settled(step_id: str, confirmed: bool, how: str, answer_id: str | None = None) -> Event:
    """Says to all who read the session that a question is open no more: each of them may be showing it."""
    content = {"code": NoticeCode.ANSWERED, "message": how, "confirmed": confirmed}
    if answer_id is not None:
        content["answer_id"] = answer_id[:MAX_ID_CHARS]
    return Event(NOTICE, content, step_id=step_id)
