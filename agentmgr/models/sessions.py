"""Conversations as their journal has them: what is shown of them, and of what waits for a person."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import frozen

SHOWN_OF_AN_ID = 12
"""Characters: `ses_` and 32 of an id's 128 random bits, which is enough to tell sessions apart."""


class SessionState(StrEnum):
    """What a session does now."""

    RUNNING = "running"  #: a turn
    ASKING = "asking"  #: and waits for a person's answer
    IDLE = "idle"  #: in an instance's memory
    HIBERNATED = "hibernated"  #: on disk only; its next message brings it back
    ENDED = "ended"


@frozen(kw_only=True)
class SessionInfo:
    """One conversation, without anything that was said in it."""

    session_id: str  #: whoever knows the whole of it may speak in a session that has no owner
    service: str  #: its name
    name: str | None  #: that its client gave it
    owner: str | None  #: the name of a token; None: whoever knows its id
    state: SessionState
    instance_id: str | None  #: that has it in memory
    turns: int
    input_tokens: int
    output_tokens: int
    created_at: datetime
    last_used_at: datetime
    ended_at: datetime | None
    end_reason: str | None


@frozen
class SessionPage:
    """Some sessions of a service or of all, the last used first."""

    items: tuple[SessionInfo, ...]
    limit: int
    next_cursor: str | None  #: None on the last page
    unreadable: tuple[str, ...] = ()  #: of all services: those whose sessions cannot be read now


@frozen(kw_only=True)
class SessionTurn:
    """A message, and what became of it."""

    number: int
    step_id: str
    message: Any
    metadata: Mapping[str, Any]
    status: str  #: `waiting`, `running` or `ended`
    attempts: int  #: how often it was begun
    accepted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    ended_by: str | None  #: the event that ended it, as `agent.final_answer`
    answer: Any  #: None where there is none
    incomplete: bool  #: the answer was broken off
    tools: tuple[str, ...]  #: that were called, in their order


@frozen(kw_only=True)
class SessionQuestion:
    """One that waits for a person."""

    session_id: str
    service: str  #: its name
    name: str | None
    owner: str | None
    instance_id: str | None
    """That waits for the answer. None: it has died, and the next one closes the question or asks it again."""
    step_id: str  #: to be named in the answer
    content: Any  #: what its `agent.user_confirm` says; None for who may not see it
    asked_at: datetime


@frozen(kw_only=True)
class SessionDetail(SessionInfo):
    """One conversation with what was said in it: its last turns, the oldest first."""

    history: tuple[SessionTurn, ...]
    questions: tuple[SessionQuestion, ...]
    session_state: Any  #: what its author keeps in `session.state`
