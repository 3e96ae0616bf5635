"""The Responses API: from the events of a turn to those of a response, or to the response so far. Pure.

turn accepted                 response.created; response.queued in the background; response.in_progress
agent.thinking, tool_call,    a `reasoning` item with a summary, in which tools are lines of text: a call of a
tool_result                   function would be for the client to run
agent.partial_answer          a `message` item with one part, and its deltas
agent.final_answer            what was not streamed of it, and response.completed
agent.user_confirm            an `mcp_approval_request` item, and response.completed: the next response, to
                              an input that answers it, is of the same turn
agent.interrupted             response.incomplete, status `cancelled` or `incomplete`
agent.error, agent.timeout    response.failed

Equal events make equal ones of a response, with equal numbers, whenever they are read: what a client was
sent need not be kept, since a session's journal can say it again. `part` says how many questions of the turn
were answered before this response begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import define, field

from .. import jsontext, protocol
from ..core.plain_text import as_text
from .openai_chat import rest_of, tool_line
from .problem import Problem, failed
from .response_id import ResponseId

Out = dict[str, Any]
"""An event of a response."""
APPROVAL = "mcpr_"
"""Begins the id of a question, whose rest is that of its response's id."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once: half the cost
_CANCELLED = "cancelled by the client"  # as the host says it


def in_sse(events: Iterable[Out]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), in_json(each)) for each in events)


def in_json(value: Any) -> bytes:
    return jsontext.in_utf8(_encode(value))


@define
class _Item:
    """One that is not complete yet."""

    kind: str  #: reasoning or message
    id: str
    index: int
    text: list[str] = field(factory=list)

    def shown(self, status: str) -> Out:
        text = "".join(self.text)
        if self.kind == "reasoning":
            summary = [{"type": "summary_text", "text": text}]
            return {"id": self.id, "type": "reasoning", "summary": summary, "status": status}
        content = [_part(text)]
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }


def _part(text: str) -> Out:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@define
class ResponseEvents:
    """Makes them of the events of one turn."""

    id: ResponseId
    echo: Mapping[str, Any] = field(factory=dict)  #: of the request, as far as it is known
    status: str = "in_progress"
    question: str | None = None  #: the `step_id` of the one that it ends with
    finished: bool = False
    _number: int = 0  # of the next event
    _passed: int = 0  # questions of the turn
    _already: str = ""  # of the answer, before this response
    _said: list[str] = field(factory=list)  # of the answer, here
    _output: list[Out] = field(factory=list)  # what is complete
    _count: int = 0  # of items
    _open: _Item | None = None
    _error: Out | None = None
    _incomplete: Out | None = None  # why
    _usage: dict[str, int] = field(factory=lambda: {"input_tokens": 0, "output_tokens": 0})
    _completed_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.status = "queued" if self.id.background else "in_progress"

    def begin(self) -> list[Out]:
        """What comes before all others, once the message was taken."""
        first = "response.queued" if self.status == "queued" else "response.in_progress"
        return [self._event("response.created"), self._event(first)]

    def feed(self, event: Mapping[str, Any]) -> list[Out]:
        """Those for an event of the turn; none when it is finished."""
        if self.finished:
            return []
        if self._passed < self.id.part:
            self._pass(event)
            return []
        made = []
        if self.status == "queued":
            self.status = "in_progress"
            made.append(self._event("response.in_progress"))
        return made + self._translate(event["event"], event.get("content", ""), event)

    def cut_off(self, problem: Problem) -> list[Out]:
        """Ends a stream that can not go on here, though the response may: it can be taken up again."""
        return [self._event("error", code=problem.code, message=problem.message, param=problem.param)]

    def response(self) -> Out:
        """As it is now."""
        items = [*self._output, *([self._open.shown("in_progress")] if self._open else [])]
        return self._shown(items)

    def _pass(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case protocol.PARTIAL_ANSWER:
                self._already += as_text(event.get("content", ""))
            case protocol.USER_CONFIRM:
                self._passed += 1
            case protocol.NOTICE if _restarts(event):
                self._already = ""

    def _translate(self, name: str, content: Any, event: Mapping[str, Any]) -> list[Out]:
        match name:
            case protocol.PARTIAL_ANSWER:
                return self._say(as_text(content))
            case protocol.THINKING:
                return self._delta("reasoning", as_text(content))
            case protocol.TOOL_CALL | protocol.TOOL_RESULT:
                return self._delta("reasoning", tool_line(name, content))
            case protocol.FINAL_ANSWER:
                here = "".join(self._said)
                made = self._say(rest_of(as_text(content), self._already + here, here))
                if not any(item["type"] == "message" for item in self._output) and self._open is None:
                    made += self._begin_item("message")
                return made + self._end("completed", event)
            case protocol.USER_CONFIRM:
                self.question = str(event.get("step_id"))
                return self._close("completed") + self._ask(content) + self._end("completed", event)
            case protocol.INTERRUPTED:
                fields = content if isinstance(content, Mapping) else {}
                if fields.get("reason") == _CANCELLED:
                    return self._end("cancelled", event)
                code, reason = str(fields.get("code") or "interrupted"), str(fields.get("reason") or "")
                self._incomplete = {"reason": None, "code": code, "message": reason}
                return self._end("incomplete", event)
            case protocol.AGENT_ERROR | protocol.TIMEOUT:
                problem = failed(name, content)
                self._error = _error(problem.code, problem.message)
                return self._end("failed", event)
            case protocol.SESSION_END:
                self._error = _error("session_ended", "The session was ended during the answer.")
                return self._end("failed", event)
            case protocol.USAGE if isinstance(content, Mapping):
                for kind in self._usage:
                    tokens = content.get(kind)
                    self._usage[kind] += tokens if isinstance(tokens, int) else 0
            case protocol.NOTICE if _restarts(event):
                made = self._close("incomplete")
                self._already, self._said, self._output = "", [], []
                return made
        return []

    def _say(self, text: str) -> list[Out]:
        self._said.append(text)
        return self._delta("message", text)

    def _delta(self, kind: str, text: str) -> list[Out]:
        if not text:
            return []
        made = []
        if self._open is None or self._open.kind != kind:
            made = self._close("completed") + self._begin_item(kind)
        item = self._open
        assert item is not None
        item.text.append(text)
        return [*made, self._event_of(item, f"{_TEXT[kind]}.delta", delta=text)]

    def _begin_item(self, kind: str) -> list[Out]:
        item = self._open = _Item(kind, f"{_PREFIX[kind]}_{self._count}.{self.id.word}", self._count)
        self._count += 1
        shown = item.shown("in_progress") | {_PARTS[kind]: []}
        return [
            self._event("response.output_item.added", output_index=item.index, item=shown),
            self._event_of(item, f"{_PART[kind]}.added", part=_part_of(item)),
        ]

    def _close(self, status: str) -> list[Out]:
        item, self._open = self._open, None
        if item is None:
            return []
        self._output.append(item.shown(status))
        return [
            self._event_of(item, f"{_TEXT[item.kind]}.done", text="".join(item.text)),
            self._event_of(item, f"{_PART[item.kind]}.done", part=_part_of(item)),
            self._event("response.output_item.done", output_index=item.index, item=self._output[-1]),
        ]

    def _ask(self, content: Any) -> list[Out]:
        fields = content if isinstance(content, Mapping) else {}
        item = {
            "id": approval_id(self.id),
            "type": "mcp_approval_request",
            "server_label": self.id.model,
            "name": str(fields.get("tool") or "confirm"),
            "arguments": json.dumps(fields.get("args"), ensure_ascii=False),
            "message": str(fields.get("message") or ""),  # ours: what a person is asked
        }
        self._output.append(item)
        index, self._count = self._count, self._count + 1
        return [
            self._event("response.output_item.added", output_index=index, item=item),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _end(self, status: str, event: Mapping[str, Any]) -> list[Out]:
        made = self._close("completed" if status == "completed" else "incomplete")
        self.status, self.finished = status, True
        if status == "completed":
            self._completed_at = _unix(event.get("timestamp"))
        # There is no event for `cancelled` that clients know.
        name = "response.incomplete" if status == "cancelled" else f"response.{status}"
        return [*made, self._event(name)]

    def _event(self, name: str, **fields: Any) -> Out:
        number, self._number = self._number, self._number + 1
        if name.count(".") == 1:
            fields["response"] = self._shown(self._output)
        return {"type": name, "sequence_number": number, **fields}

    def _event_of(self, item: _Item, name: str, **fields: Any) -> Out:
        place: Out = {"item_id": item.id, "output_index": item.index}
        if item.kind == "reasoning":
            place["summary_index"] = 0
        else:
            place["content_index"] = 0
            if name.startswith("response.output_text"):
                place["logprobs"] = []
        return self._event(name, **place, **fields)

    def _shown(self, items: list[Out]) -> Out:
        return {
            "id": str(self.id),
            "object": "response",
            "created_at": self.id.created,
            "status": self.status,
            "completed_at": self._completed_at,
            "background": self.id.background,
            "model": self.id.model,
            "output": list(items),
            "error": self._error,
            "incomplete_details": self._incomplete,
            "usage": self._used() if self.finished else None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            **self.echo,
        }

    def _used(self) -> Out:
        return {
            **self._usage,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(self._usage.values()),
        }


_PREFIX = {"reasoning": "rs", "message": "msg"}
_PARTS = {"reasoning": "summary", "message": "content"}
_PART = {"reasoning": "response.reasoning_summary_part", "message": "response.content_part"}
_TEXT = {"reasoning": "response.reasoning_summary_text", "message": "response.output_text"}


def approval_id(asking: ResponseId) -> str:
    return APPROVAL + asking.word


def _part_of(item: _Item) -> Out:
    text = "".join(item.text)
    return {"type": "summary_text", "text": text} if item.kind == "reasoning" else _part(text)


def _error(code: str, message: str) -> Out:
    """Clients know a few values of `code`, none of them ours."""
    return {"code": "server_error", "message": message, "param": None, "type": code}


def _restarts(event: Mapping[str, Any]) -> bool:
    content = event.get("content")
    return isinstance(content, Mapping) and content.get("code") == protocol.NoticeCode.TURN_RESTARTED


def _unix(timestamp: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        return None
