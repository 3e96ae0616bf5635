"""The events of one session, as an editor's `session/update`. Pure.

agent.thinking              agent_thought_chunk
agent.partial_answer        agent_message_chunk
agent.final_answer          agent_message_chunk of what was not streamed of it; the prompt's end_turn
agent.tool_call             tool_call, in_progress
agent.tool_result           tool_call_update, completed or failed
agent.user_confirm          tool_call, pending; then session/request_permission, see `permission`
notice answered             tool_call_update of that: completed for yes, failed for no
agent.interrupted           the prompt's `cancelled`; where the service was stopped, an error
agent.error, agent.timeout  an error
notice turn_restarted       a new paragraph: what was said of the answer before does not count
notice gap                  agent_thought_chunk that says so

Every `tool_call` gets its last update before its turn is over: an editor would show it as running for ever.
Ids of tool calls are made of the event's `seq`, so that another process gives them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from attrs import define, field

from .. import protocol
from ..client.events import AgentEvent, failure_message
from ..core.plain_text import as_text, message_text
from ..protocol import NoticeCode
from .content import text_block
from .rpc import INTERNAL_ERROR, RpcError

Update = dict[str, Any]

ALLOW, REJECT = "allow", "reject"
_OPTIONS = [
    {"optionId": ALLOW, "name": "Allow", "kind": "allow_once"},
    {"optionId": REJECT, "name": "Reject", "kind": "reject_once"},
]
_PIECE = 8192
"""Characters of text in an update, at most: there are editors whose lines end at 64 KiB."""


@define
class Updates:
    """Of a session whose events are fed in their order."""

    questions: dict[str, AgentEvent] = field(factory=dict, init=False)  #: that are open, by step_id
    usage: dict[str, int] | None = field(default=None, init=False)  #: of the turn
    _streamed: list[str] = field(factory=list, init=False)
    _running: dict[str, tuple[str, Any]] = field(factory=dict, init=False)  # tool and step_id, by id
    _new_turn: bool = field(default=True, init=False)

    def feed(self, event: AgentEvent) -> list[Update]:
        content = event.content if isinstance(event.content, Mapping) else {}
        if self._new_turn:
            self.usage, self._new_turn = None, False
        match event.event:
            case protocol.PARTIAL_ANSWER:
                return self._say(as_text(event.content))
            case protocol.THINKING:
                return _chunk("agent_thought_chunk", as_text(event.content))
            case protocol.TOOL_CALL:
                return self._call(event, content)
            case protocol.TOOL_RESULT:
                return self._result(event, content)
            case protocol.USER_CONFIRM:
                return self._ask(event, content)
            case protocol.USAGE:
                self._count(content)
            case protocol.NOTICE if event.code == NoticeCode.ANSWERED:
                asked = self.questions.pop(event.step_id or "", None)
                return [] if asked is None else [_done(_question_id(asked), content.get("confirmed") is True)]
            case protocol.NOTICE if event.code == NoticeCode.TURN_RESTARTED:
                again = self._say("\n\n") if self._streamed else []
                self._streamed.clear()
                return self._close(completed=False) + again
            case protocol.NOTICE if "missing_to" in content:
                missing = f"events {content.get('missing_from')} to {content['missing_to']} are missing"
                return _chunk("agent_thought_chunk", missing)
            case protocol.FINAL_ANSWER:
                return self._end(self._rest_of(as_text(event.content)), completed=True)
            case name if name in protocol.TURN_ENDS:
                return self._end("", completed=False)
        return []

    def _say(self, text: str) -> list[Update]:
        self._streamed.append(text)
        return _chunk("agent_message_chunk", text)

    def _rest_of(self, final: str) -> str:
        streamed = "".join(self._streamed)
        if final.startswith(streamed):
            return final[len(streamed) :]
        # A stream of over 8 MiB is cut off in `agent.final_answer`.
        return "" if streamed.startswith(final) else f"\n\n{final}"

    def _call(self, event: AgentEvent, content: Mapping[str, Any]) -> list[Update]:
        tool, id = str(content.get("tool") or "tool"), f"call_{event.seq}"
        self._running[id] = tool, event.step_id
        call = {"toolCallId": id, "title": tool, "kind": "other", "status": "in_progress"}
        return [{"sessionUpdate": "tool_call", **call, "rawInput": content.get("args")}]

    def _result(self, event: AgentEvent, content: Mapping[str, Any]) -> list[Update]:
        tool = str(content.get("tool") or "tool")
        same = (id for id, which in self._running.items() if which == (tool, event.step_id))
        begun: list[Update] = []
        if (id := next(same, None)) is None:
            begun = self._call(event, content)
            id = f"call_{event.seq}"
        del self._running[id]
        result, done = content.get("result"), _done(id, content.get("success", True) is not False)
        shown = [{"type": "content", "content": text_block(as_text(result))}]
        return [*begun, {**done, "content": shown, "rawOutput": result}]

    def _ask(self, event: AgentEvent, content: Mapping[str, Any]) -> list[Update]:
        before = self.questions.pop(event.step_id or "", None)
        closed = [] if before is None else [_done(_question_id(before), False)]
        self.questions[event.step_id or ""] = event
        return [*closed, {"sessionUpdate": "tool_call", "kind": "other", **_question(event, content)}]

    def _count(self, content: Mapping[str, Any]) -> None:
        usage = self.usage = self.usage or {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
        for ours, theirs in (("input_tokens", "inputTokens"), ("output_tokens", "outputTokens")):
            tokens = content.get(ours)
            if type(tokens) is int and tokens > 0:
                usage[theirs] += tokens
                usage["totalTokens"] += tokens

    def _end(self, rest: str, *, completed: bool) -> list[Update]:
        said = self._close(completed=completed) + _chunk("agent_message_chunk", rest)
        self._streamed.clear()
        self._new_turn = True
        return said

    def _close(self, *, completed: bool) -> list[Update]:
        closed = [_done(id, completed) for id in self._running]
        closed += [_done(_question_id(asked), False) for asked in self.questions.values()]
        self._running.clear()
        self.questions.clear()
        return closed


def permission(question: AgentEvent) -> dict[str, Any]:
    """What is asked of the editor's user, beside the session."""
    content = question.content if isinstance(question.content, Mapping) else {}
    return {"toolCall": _question(question, content), "options": _OPTIONS}


def result_of(end: AgentEvent, usage: Mapping[str, int] | None, *, cancelled: bool) -> dict[str, Any]:
    """The answer to a prompt, by the event that ended its turn. Raises `RpcError`: the turn has failed."""
    stopped = end.event == protocol.INTERRUPTED and end.code is None
    if not (cancelled or stopped) and end.event != protocol.FINAL_ANSWER:
        content = end.content if isinstance(end.content, Mapping) else {}
        data = {name: content[name] for name in ("code", "error_id", "type") if name in content}
        raise RpcError(INTERNAL_ERROR, failure_message(end), {"code": end.event, **data})
    result: dict[str, Any] = {"stopReason": "cancelled" if cancelled or stopped else "end_turn"}
    return result if usage is None else {**result, "usage": dict(usage)}


def joined(updates: Iterable[Update]) -> list[Update]:
    """The same updates, where pieces of one text that follow each other are one piece."""
    found: list[Update] = []
    for kind, group in groupby(updates, key=lambda update: str(update["sessionUpdate"])):
        if kind.endswith("_chunk"):
            found += _chunk(kind, "".join(update["content"]["text"] for update in group))
        else:
            found += group
    return found


def user_chunk(content: Any) -> list[Update]:
    """A message of the user, as it is in a session's history."""
    return _chunk("user_message_chunk", message_text(content))


def agent_chunk(content: Any) -> list[Update]:
    return _chunk("agent_message_chunk", as_text(content))


def _chunk(kind: str, text: str) -> list[Update]:
    pieces = (text[place : place + _PIECE] for place in range(0, len(text), _PIECE))
    return [{"sessionUpdate": kind, "content": text_block(piece)} for piece in pieces]


def _done(id: str, completed: bool) -> Update:
    status = "completed" if completed else "failed"
    return {"sessionUpdate": "tool_call_update", "toolCallId": id, "status": status}


def _question_id(question: AgentEvent) -> str:
    return f"ask_{question.seq}"


def _question(event: AgentEvent, content: Mapping[str, Any]) -> dict[str, Any]:
    title = content.get("message") or f"May I run {content.get('tool') or 'this'}?"
    return {
        "toolCallId": _question_id(event),
        "title": str(title),
        "status": "pending",
        "rawInput": content.get("args"),
    }
