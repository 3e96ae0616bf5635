"""What is read off journals, as interfaces show it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from attrs import evolve

from ..codec import to_plain
from ..errors import SessionNotFound
from ..journal.archive import OpenQuestion, SaidMessage, SessionSummary
from ..journal.journal import Question, TurnRecord
from ..models import ServiceSpec
from ..models.sessions import SHOWN_OF_AN_ID, SessionDetail, SessionInfo, SessionQuestion, SessionTurn
from ..protocol import MESSAGE, SESSION_END
from ..visible import json_text


def not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"no session has the id {session_id!r}: `agentmgr sessions` lists them")


def shortened(info: SessionInfo) -> SessionInfo:
    """As who may not speak in it sees it: of what gives access to a session, neither id nor name."""
    return evolve(info, session_id=_short(info.session_id), name=info.name if info.owner else None)


def without_content(question: SessionQuestion) -> SessionQuestion:
    """The same for a question."""
    name = question.name if question.owner else None
    return evolve(question, session_id=_short(question.session_id), name=name, step_id="", content=None)


def _short(session_id: str) -> str:
    return session_id[:SHOWN_OF_AN_ID] + "…"


def info_of(spec: ServiceSpec, summary: SessionSummary) -> SessionInfo:
    return SessionInfo(
        session_id=summary.session_id,
        service=spec.name,
        name=summary.name,
        owner=summary.owner,
        state=summary.state,
        instance_id=summary.instance_id,
        turns=summary.turns,
        input_tokens=summary.input_tokens,
        output_tokens=summary.output_tokens,
        created_at=_moment(summary.created_at),
        last_used_at=_moment(summary.last_used_at),
        ended_at=_perhaps(summary.ended_at),
        end_reason=summary.end_reason,
    )


def turn_of(turn: TurnRecord, tools: Iterable[str]) -> SessionTurn:
    message, answer = json.loads(turn.message), json.loads(turn.answer or "{}")
    return SessionTurn(
        number=turn.number,
        step_id=turn.step_id,
        message=message.get("content"),
        metadata=message.get("metadata") or {},
        status=turn.status,
        attempts=turn.attempts,
        accepted_at=_moment(turn.accepted_at),
        started_at=_perhaps(turn.started_at),
        ended_at=_perhaps(turn.ended_at),
        ended_by=turn.ended_by,
        answer=answer.get("content"),
        incomplete=bool(answer.get("incomplete")),
        tools=tuple(tools),
    )


def question_of(
    spec: ServiceSpec, whose: SessionSummary | OpenQuestion, question: Question
) -> SessionQuestion:
    return SessionQuestion(
        session_id=whose.session_id,
        service=spec.name,
        name=whose.name,
        owner=whose.owner,
        instance_id=whose.instance_id,
        step_id=question.step_id,
        content=json.loads(question.content),
        asked_at=_moment(question.asked_at),
    )


def message_event(session_id: str, said: SaidMessage) -> bytes:
    head = {"event": MESSAGE, "session_id": session_id, "step_id": said.step_id}
    at = _moment(said.accepted_at).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json_text({**head, "timestamp": at, **json.loads(said.message)}, indent=None).encode()


def ends_session(line: bytes) -> bool:
    """Whether this is the last event of its session."""
    return line.startswith(b"{") and json.loads(line).get("event") == SESSION_END


def export_line(kind: str, value: SessionDetail | SessionTurn) -> bytes:
    return (json_text({"kind": kind, **to_plain(value)}) + "\n").encode()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _perhaps(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
