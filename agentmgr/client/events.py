"""What an agent says, as its client sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen

from .. import protocol


@frozen
class AgentEvent:
    """One event from the agent, as it came."""

    event: str
    content: Any = ""
    session_id: str | None = None
    step_id: str | None = None
    seq: int | None = None
    metadata: Mapping[str, Any] = Factory(dict)
    fields: Mapping[str, Any] = field(factory=dict, repr=False)  #: all of it

    @property
    def code(self) -> str | None:
        """Of a `system.error` or `system.notice`."""
        return self.content.get("code") if isinstance(self.content, Mapping) else None


def failure_message(end: AgentEvent) -> str:
    """One line for a person on why a turn has no answer."""
    content = end.content if isinstance(end.content, Mapping) else {"message": end.content}
    if end.event == protocol.INTERRUPTED:
        return f"the turn was interrupted: {content.get('reason', 'no reason given')}"
    if end.event == protocol.TIMEOUT:
        return f"the agent did not answer within {content.get('timeout_s')} s"
    return str(content.get("message") or "the agent failed and gave no reason")


def encode(event: str, **fields: Any) -> str:
    """One event as a text frame."""
    return json.dumps({"event": event, **fields}, ensure_ascii=False)


def decode(frame: str | bytes) -> AgentEvent:
    """What an agent sent; an event without a name where it makes no sense."""
    try:
        fields = json.loads(frame)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        return AgentEvent("", fields={"frame": frame})  # not for us; ignored like any unknown event
    return AgentEvent(
        fields["event"],
        fields.get("content", ""),
        fields.get("session_id"),
        fields.get("step_id"),
        fields.get("seq"),
        fields.get("metadata") or {},
        fields,
    )
