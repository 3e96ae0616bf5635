"""AG-UI 1.0: from the events of a turn to the events of a run, as server-sent ones. Pure.

begin                         RUN_STARTED; STATE_SNAPSHOT, MESSAGES_SNAPSHOT; the starts of what is open
agent.thinking                REASONING_START, REASONING_MESSAGE_START, _CONTENT; the ends when another begins
agent.partial_answer          TEXT_MESSAGE_START, _CONTENT; _END when another begins
agent.tool_call               TOOL_CALL_START, _ARGS, _END
agent.tool_result             TOOL_CALL_RESULT
agent.user_confirm            RUN_FINISHED with an interrupt: the next run answers it and goes on
agent.final_answer            what was not streamed of it; RUN_FINISHED, success
agent.interrupted             RUN_FINISHED, cancelled
agent.error, agent.timeout    RUN_ERROR
a gap                         CUSTOM agentmgr.gap, MESSAGES_SNAPSHOT
a turn that runs again        CUSTOM agentmgr.turn_restarted, MESSAGES_SNAPSHOT without what it had said
other events of the agent     CUSTOM, by their names

The id of a server-sent event is our `seq`. Of what one of our events becomes, the last piece with a content
has it, and what ends behind that: a client that was cut between two pieces gets no content twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import define, field

from .. import jsontext, protocol
from ..core.plain_text import as_plain_text, as_text, message_text
from ..protocol import NoticeCode
from .agui_input import FINAL
from .problem import Problem, failed

PROTOCOL_VERSION = "1.0"
GAP = "agentmgr.gap"
RESTARTED = "agentmgr.turn_restarted"
RESPONSE_SCHEMA = {
    "type": "object",
    "properties": {"confirmed": {"type": "boolean"}, "message": {"type": "string"}},
    "required": ["confirmed"],
}
"""Of the payload that answers a question."""
_TYPE_BYTES = 40  # has the type, which comes first
_SILENT = frozenset(
    {protocol.SESSION_CREATED, protocol.STATE_EXPORTED, protocol.STATE_RESTORED, protocol.CONNECTED}
)

AguiMessage = Mapping[str, Any]  # a message of AG-UI


@define
class RunStream:
    """The events of a turn, from where the run begins to a question or the turn's end."""

    thread_id: str
    run_id: str
    modern: bool = True  #: the client speaks 1.0; one before it refuses what came with it
    messages: Sequence[AguiMessage] = ()  #: that the client has, up to the one that is answered
    taken: frozenset[str] = frozenset()  #: ids of its tool calls before that
    begun: bool = False
    finished: bool = False
    question: str | None = None  #: the `step_id` of the question that it ends with
    _end: bytes = b""  # what ended it
    _state: Any = None  # as the client knows it
    _open: tuple[str, str] | None = None  # text or reasoning, and its id
    _counted: int = 0  # of what has no `seq`
    _streamed: list[str] = field(factory=list)  # of the answer
    _has_gap: bool = False  # some of that is missing
    _calls: dict[str, tuple[str, str]] = field(factory=dict)  # by `step_id`: id, and the tool's name
    _waiting: dict[str, str] = field(factory=dict)  # ids of calls without a result, and the tool's name
    _shown: set[str] = field(factory=set)  # ids of the calls that this stream has begun
    _usage: dict[str, dict[str, int]] = field(factory=dict)  # by model
    _content: bytes = b""  # all of a piece of the open text, but for the text

    def begin(self, state: Any = None, messages: Sequence[AguiMessage] | None = None) -> bytes:
        """The first events; also the last, of a run that is over."""
        self.begun = True
        self._shown.clear()
        said = [self._said("RUN_STARTED", **self._ids, protocolVersion=PROTOCOL_VERSION)]
        if state:
            self._state = state
            said.append(self._said("STATE_SNAPSHOT", snapshot=state))
        if messages is not None:
            said.append(self._said("MESSAGES_SNAPSHOT", messages=messages))
        if self._open is not None and not self.finished:
            said += self._starts(*self._open)
        return _frames(said) + self._end

    def go_on(self) -> None:
        """The question that it ended with has been answered: the turn goes on in this run."""
        self.finished, self.question, self._end = False, None, b""
        self._usage.clear()  # the run before has said its own

    def states(self, state: Any) -> bytes:
        """What the session's state is now, if the client does not know it."""
        if (state or None) == self._state:
            return b""
        self._state = state or None
        return _frames([self._said("STATE_SNAPSHOT", snapshot=state)])

    def nothing(self) -> None:
        """Nothing is to be said: the run is over as soon as it begins."""
        self.finished, self._end = True, _frames([self._finished("success")])

    def feed(self, event: Mapping[str, Any]) -> bytes:
        """What an event of the turn becomes. Nothing comes behind the end of the run."""
        if self.finished:
            return b""
        name, content = event["event"], event.get("content")
        seq = event.get("seq")
        number = b"id: %d\n" % seq if type(seq) is int else b""
        if name == protocol.PARTIAL_ANSWER and self._open is not None and self._open[0] == "text":
            text = as_text(content)
            self._streamed.append(text)
            return self._piece(text, number)
        self._counted += 1
        place = f"{self.run_id}-{seq if number else f'n{self._counted}'}"
        ended: list[bytes] = []
        match name:
            case protocol.PARTIAL_ANSWER:
                text = as_text(content)
                self._streamed.append(text)
                said = self._text(text, place)
            case protocol.THINKING:
                said = self._text(as_text(content), place, "reasoning")
            case protocol.TOOL_CALL:
                said = self._call(event, place)
            case protocol.TOOL_RESULT:
                said = self._result(event, place)
            case protocol.USAGE:
                said = self._count(content)
            case protocol.NOTICE:
                said = self._notice(content)
            case protocol.USER_CONFIRM:
                said, ended = self._close(), [self._asks(event)]
            case protocol.FINAL_ANSWER:
                said, ended = self._answers(content, place)
            case protocol.INTERRUPTED:
                said, ended = self._close(), [self._finished("cancelled")]
            case protocol.AGENT_ERROR | protocol.TIMEOUT:
                said, ended = self._close(), [self._failed(failed(name, content))]
            case protocol.SESSION_END:
                over = Problem(502, "session_ended", "The session was ended before its answer.")
                said, ended = self._close(), [self._failed(over)]
            case _ if name in _SILENT:
                said = []
            case _:
                said = [self._said("CUSTOM", name=name, value=content)]
        if ended:
            self.finished, self._end = True, _frames(ended, number)
            return _frames(said, number) + self._end
        return _frames(said, number)

    def cut_off(self, problem: Problem) -> bytes:
        """The end of a stream that is cut off; all of one that had not begun."""
        if self.finished and self.begun:
            return b""
        begin = b"" if self.begun else self.begin()
        self.finished = True
        return begin + _frames([*self._close(), self._failed(problem)])

    @property
    def _ids(self) -> dict[str, str]:
        return {"threadId": self.thread_id, "runId": self.run_id}

    def _said(self, kind: str, **fields: Any) -> bytes:
        return jsontext.in_utf8(jsontext.encode({"type": kind, **fields}))

    def _starts(self, kind: str, message_id: str) -> list[bytes]:
        if kind == "text":
            return [self._said("TEXT_MESSAGE_START", messageId=message_id, role="assistant")]
        return [
            self._said("REASONING_START", messageId=message_id),
            self._said("REASONING_MESSAGE_START", messageId=message_id, role="reasoning"),
        ]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        (kind, message_id), self._open = self._open, None
        if kind == "text":
            return [self._said("TEXT_MESSAGE_END", messageId=message_id)]
        return [
            self._said("REASONING_MESSAGE_END", messageId=message_id),
            self._said("REASONING_END", messageId=message_id),
        ]

    def _begins(self, kind: str, message_id: str) -> list[bytes]:
        """Another one than is open."""
        closed, self._open = self._close(), (kind, message_id)
        name = b"TEXT_MESSAGE_CONTENT" if kind == "text" else b"REASONING_MESSAGE_CONTENT"
        encoded = jsontext.in_utf8(jsontext.encode(message_id))
        self._content = b'{"type":"%b","messageId":%b,"delta":' % (name, encoded)
        return closed + self._starts(kind, message_id)

    def _piece(self, text: str, number: bytes) -> bytes:
        if not text:
            return b""
        delta = jsontext.in_utf8(jsontext.encode(text))
        return b"%bdata: %b%b}\n\n" % (number, self._content, delta)

    def _text(self, text: str, message_id: str, kind: str = "text") -> list[bytes]:
        if not text:
            return []
        begins = [] if self._open and self._open[0] == kind else self._begins(kind, message_id)
        return [*begins, self._content + jsontext.in_utf8(jsontext.encode(text)) + b"}"]

    def _call(self, event: Mapping[str, Any], place: str) -> list[bytes]:
        content = event.get("content")
        fields = content if isinstance(content, Mapping) else {}
        step_id, tool = str(event.get("step_id")), as_text(fields.get("tool") or "tool")
        # An author may give each call the same id, or none; to the client it is one in its whole thread.
        known = self.taken.union(self._shown, (call_id for call_id, _ in self._calls.values()))
        call_id = place if step_id == self.run_id or not event.get("step_id") else step_id
        if call_id in known:
            call_id = f"{step_id}-{place}"
        self._calls[step_id] = (call_id, tool)
        self._waiting[call_id] = tool
        args = fields.get("args")
        return [*self._close(), *self._shows(call_id, tool, "{}" if args is None else jsontext.encode(args))]

    def _shows(self, call_id: str, tool: str, args: str = "") -> list[bytes]:
        self._shown.add(call_id)
        said = [self._said("TOOL_CALL_START", toolCallId=call_id, toolCallName=tool)]
        if args:
            said.append(self._said("TOOL_CALL_ARGS", toolCallId=call_id, delta=args))
        return [*said, self._said("TOOL_CALL_END", toolCallId=call_id)]

    def _result(self, event: Mapping[str, Any], place: str) -> list[bytes]:
        content = event.get("content")
        fields = content if isinstance(content, Mapping) else {"result": content}
        step_id, tool = str(event.get("step_id")), as_text(fields.get("tool") or "tool")
        call_id, tool = self._calls.get(step_id, (f"{place}-call", tool))
        self._waiting.pop(call_id, None)
        # A call of an earlier run of the turn is one that the client has; to this run it has to be begun.
        begun = [] if call_id in self._shown else self._shows(call_id, tool)
        metadata = {} if fields.get("success", True) is not False else {"metadata": {"success": False}}
        return [
            *self._close(),
            *begun,
            self._said(
                "TOOL_CALL_RESULT",
                messageId=place,
                toolCallId=call_id,
                content=as_text(fields.get("result")),
                role="tool",
                **metadata,
            ),
        ]

    def _count(self, content: Any) -> list[bytes]:
        fields = content if isinstance(content, Mapping) else {}
        sums = self._usage.setdefault(str(fields.get("model") or ""), {})
        for ours, theirs in (("input_tokens", "inputTokens"), ("output_tokens", "outputTokens")):
            if type(more := fields.get(ours)) is int and 0 <= more < 2**53:
                sums[theirs] = sums.get(theirs, 0) + more
        return []

    def _notice(self, content: Any) -> list[bytes]:
        fields = content if isinstance(content, Mapping) else {}
        match fields.get("code"):
            case NoticeCode.GAP:
                missing = {"missing_from": fields.get("missing_from"), "missing_to": fields.get("missing_to")}
                said = self._said("CUSTOM", name=GAP, value=missing)
            case NoticeCode.TURN_RESTARTED:
                said = self._said("CUSTOM", name=RESTARTED, value={"message": fields.get("message")})
                self._waiting.clear()
            case _:
                return []
        self._streamed.clear()
        self._has_gap = fields["code"] == NoticeCode.GAP
        return [*self._close(), said, self._snapshot()]

    def _snapshot(self) -> bytes:
        return self._said("MESSAGES_SNAPSHOT", messages=self.messages)

    def _asks(self, event: Mapping[str, Any]) -> bytes:
        content = event.get("content")
        fields = content if isinstance(content, Mapping) else {}
        tool, message = fields.get("tool"), fields.get("message")
        asked = as_plain_text({"event": protocol.USER_CONFIRM, "content": fields}) or ""
        self.question = str(event.get("step_id"))
        interrupt: dict[str, Any] = {
            "id": self.question,
            "reason": "confirmation",
            "message": message if isinstance(message, str) and message else asked.rpartition(" [")[0],
            "responseSchema": RESPONSE_SCHEMA,
            "metadata": {"tool": tool, "args": fields.get("args")},
        }
        if (call_id := next((c for c, name in self._waiting.items() if name == tool), None)) is not None:
            interrupt["toolCallId"] = call_id
        if (expires := _later(event.get("timestamp"), fields.get("timeout_s"))) is not None:
            interrupt["expiresAt"] = expires
        return self._finished("interrupt", interrupts=[interrupt])

    def _answers(self, content: Any, place: str) -> tuple[list[bytes], list[bytes]]:
        final, streamed = as_text(content), "".join(self._streamed)
        if self._has_gap:
            said = [*self._close(), self._snapshot(), *self._text(final, place)]
        elif final.startswith(streamed):
            said = self._text(final[len(streamed) :], place)
        elif streamed.startswith(final):  # a stream of over 8 MiB is cut off in `final_answer`
            said = []
        else:
            said = self._close() + self._text(final, self.run_id + FINAL)
        result = {} if isinstance(content, str) else {"result": content}
        return [*said, *self._close()], [self._finished("success", result)]

    def _finished(self, outcome: str, more: Mapping[str, Any] = {}, **fields: Any) -> bytes:
        known = self.modern or outcome != "cancelled"
        said = {"outcome": {"type": outcome, **fields}} if known else {}
        return self._said("RUN_FINISHED", **self._ids, **more, **said, **self._used)

    def _failed(self, problem: Problem) -> bytes:
        return self._said("RUN_ERROR", message=problem.message, code=problem.code, **self._used)

    @property
    def _used(self) -> dict[str, Any]:
        used = [({"model": model} if model else {}) | sums for model, sums in self._usage.items() if sums]
        return {"usage": used} if used and self.modern else {}


def transcript(history: Iterable[AguiMessage], thread_id: str, dropped: int = 0) -> list[dict[str, Any]]:
    """The messages of a session's history, as `agent.state_exported` shows it."""
    said = []
    for place, entry in enumerate(history, start=dropped):
        role = "user" if entry.get("role") == "user" else "assistant"
        said.append(
            {"id": f"{thread_id}-{place}", "role": role, "content": message_text(entry.get("content"))}
        )
    return said


def _frames(said: Sequence[bytes], number: bytes = b"") -> bytes:
    """The id is that of the last piece with a content, and of what ends behind it."""
    counts = [place for place, each in enumerate(said) if b'_END"' not in each[:_TYPE_BYTES]]
    begins = counts[-1] if counts else len(said) - 1
    return b"".join(
        b"%bdata: %b\n\n" % (number if place >= begins else b"", each) for place, each in enumerate(said)
    )


def _later(timestamp: Any, seconds: Any) -> str | None:
    """When a question expires; None where that is not known, or is beyond what a date can say."""
    try:
        at = datetime.fromisoformat(timestamp) + timedelta(seconds=seconds)
    except (TypeError, ValueError, OverflowError):
        return None
    return f"{at.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
