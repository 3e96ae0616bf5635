"""Chat Completions: from a body to what is said and to whom; from events to chunks, or a whole answer. Pure.

turn accepted                 the role's delta, with the first of the others
agent.thinking                delta.reasoning_content
agent.tool_call, tool_result  nothing, or a line of reasoning with `show_tools`: never `tool_calls`, which
                              the client would run
agent.partial_answer          delta.content
agent.final_answer            what was not streamed of it; finish_reason stop; usage if asked; [DONE]
agent.user_confirm            the question as text, and stop: the next message answers it
agent.interrupted             stop
agent.error, agent.timeout    a `Problem`: before the first byte status 424, after it an error chunk
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from .. import jsontext, protocol
from ..core.plain_text import as_plain_text, as_text
from .problem import HAS_RUN, Problem, failed, invalid, optional, required, typed
from .prompt import Attachment, ChatMessage, Prompt, attachment, content_of, in_data_url

DONE = b"data: [DONE]\n\n"
_USAGE = ("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")
_ASIDE = frozenset({"system", "developer"})
_ROLES = _ASIDE | {"user", "assistant", "tool", "function"}


@frozen
class ChatRequest:
    model: str
    prompt: Prompt
    stream: bool
    include_usage: bool  #: in a chunk of its own, before [DONE]
    show_tools: bool  #: an extension: what the agent's tools do, as lines of reasoning
    metadata: Mapping[str, Any]
    cache_key: str | None

    @classmethod
    def of(cls, body: Mapping[str, object]) -> ChatRequest:
        """Strict on types, lenient on fields that it does not know. Raises `Problem`."""
        model = model_of(body)
        messages = required(body, "messages", list)
        if (count := optional(body, "n", int)) not in (None, 1):
            raise invalid("n", f"must be 1: an agent gives one answer, not {count}")
        if "audio" in (optional(body, "modalities", list) or ()):
            raise invalid("modalities", "must not have audio: agents answer with text")
        options = optional(body, "stream_options", dict) or {}
        return cls(
            model,
            _prompt(messages),
            stream=bool(optional(body, "stream", bool)),
            include_usage=bool(optional(options, "include_usage", bool, "stream_options.")),
            show_tools=bool(optional(body, "show_tools", bool)),
            metadata=optional(body, "metadata", dict) or {},
            cache_key=optional(body, "prompt_cache_key", str),
        )


def _prompt(messages: list[object]) -> Prompt:
    instructions: list[str] = []
    said: list[ChatMessage] = []
    for place, item in enumerate(messages):
        where = f"messages[{place}]"
        message = typed(item, dict, where)
        role = required(message, "role", str, f"{where}.")
        if role not in _ROLES:
            raise invalid(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
        text, attachments = content_of(message.get("content"), f"{where}.content", _part)
        if role in _ASIDE:
            instructions.append(text)
        elif role in ("user", "assistant"):
            said.append(ChatMessage(role, text, attachments))
    if not said or said[-1].role != "user":
        raise invalid("messages", "must end with a message of the user")
    if not said[-1].text and not said[-1].attachments:
        raise invalid("messages", "must not end with an empty message")
    return Prompt(said[-1], tuple(said[:-1]), "\n\n".join(filter(None, instructions)))


def _part(kind: str, part: dict[str, Any], here: str) -> str | Attachment:
    match kind:
        case "text" | "refusal":
            return required(part, kind, str, f"{here}.")
        case "image_url":
            image = required(part, "image_url", dict, f"{here}.")
            url = required(image, "url", str, f"{here}.image_url.")
            return attachment("image", url, f"{here}.image_url.url")
        case "file":
            file = required(part, "file", dict, f"{here}.")
            name = optional(file, "filename", str, f"{here}.file.")
            data = required(file, "file_data", str, f"{here}.file.")
            return attachment("file", in_data_url(data), f"{here}.file.file_data", name)
    raise invalid(f"{here}.type", f"{kind[:40]!r} is not supported: send text, image_url or file")


@define
class ChatAnswer:
    """The events of one turn, as a client of Chat Completions gets them. `already` was said of it before, in
    the answer that ended with a question.
    """

    id: str
    created: int
    model: str
    include_usage: bool = False
    show_tools: bool = False
    already: str = ""
    finished: bool = False
    question: str | None = None  #: the `step_id` of the question that it ends with
    streamed: str = ""  #: of the whole answer, before that question
    _shown: list[str] = field(factory=list)  # all content that was in chunks
    _counts_from: int = 0  # what is before it was of a try that does not count
    _thought: list[str] = field(factory=list)
    _usage: dict[str, int] = field(factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})
    _head: bytes = b""
    _begun: bool = False

    def __attrs_post_init__(self) -> None:
        head = json.dumps(
            {
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": [],
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        self._head = b"data: " + jsontext.in_utf8(head)[:-2]

    def feed(self, event: Mapping[str, Any]) -> bytes:
        """The chunks for an event. Raises `Problem`: the turn has failed."""
        name, content = event["event"], event.get("content", "")
        match name:
            case protocol.PARTIAL_ANSWER:
                return self._say(as_text(content))
            case protocol.THINKING:
                return self._think(as_text(content))
            case protocol.TOOL_CALL | protocol.TOOL_RESULT if self.show_tools:
                return self._think(tool_line(name, content))
            case protocol.FINAL_ANSWER:
                return (
                    self._say(rest_of(as_text(content), self.already + self.content, self.content))
                    + self._finish()
                )
            case protocol.USER_CONFIRM:
                self.question = event.get("step_id")
                self.streamed = self.already + self.content
                gap = "\n\n" if self.content else ""
                return self._say(gap + (as_plain_text(event) or "")) + self._finish()
            case protocol.INTERRUPTED:
                return self._finish()
            case protocol.AGENT_ERROR | protocol.TIMEOUT:
                raise failed(name, content)
            case protocol.SESSION_END:
                raise Problem(
                    HAS_RUN, "session_ended", "The session was ended during the answer.", retry=False
                )
            case protocol.USAGE if isinstance(content, Mapping):
                for ours, theirs in _USAGE:
                    tokens = content.get(ours)
                    self._usage[theirs] += tokens if isinstance(tokens, int) else 0
            case protocol.NOTICE if content.get("code") == protocol.NoticeCode.TURN_RESTARTED:
                again = self._say("\n\n") if self.content else b""
                self.already, self._counts_from = "", len(self._shown)
                return again
        return b""

    @property
    def content(self) -> str:
        return "".join(self._shown[self._counts_from :])

    @property
    def shown(self) -> str:
        """What a client of the stream has."""
        return "".join(self._shown)

    @property
    def reasoning(self) -> str:
        return "".join(self._thought)

    @property
    def usage(self) -> dict[str, int]:
        return {**self._usage, "total_tokens": sum(self._usage.values())}

    def whole(self) -> bytes:
        """All of it in one answer."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        answer = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": self.usage,
        }
        return jsontext.in_utf8(json.dumps(answer, ensure_ascii=False))

    def cut_off(self, problem: Problem) -> bytes:
        """What tells a client that has chunks already."""
        return b"data: " + jsontext.in_utf8(json.dumps(error_of(problem), ensure_ascii=False)) + b"\n\n"

    def _say(self, text: str) -> bytes:
        self._shown.append(text)
        return self._delta("content", text) if text else b""

    def _think(self, text: str) -> bytes:
        self._thought.append(text)
        return self._delta("reasoning_content", text) if text else b""

    def _delta(self, name: str, text: str) -> bytes:
        role = b"" if self._begun else self._chunk(b'{"role":"assistant","content":""}')
        self._begun = True
        return role + self._chunk(b'{"%b":%b}' % (name.encode(), jsontext.in_utf8(jsontext.encode(text))))

    def _finish(self) -> bytes:
        role = b"" if self._begun else self._chunk(b'{"role":"assistant","content":""}')
        self.finished = self._begun = True
        usage = b""
        if self.include_usage:
            usage = self._head + b'],"usage":%b}\n\n' % json.dumps(self.usage).encode()
        return role + self._chunk(b"{}", b'"stop"') + usage + DONE

    def _chunk(self, delta: bytes, reason: bytes = b"null") -> bytes:
        usage = b',"usage":null' if self.include_usage else b""
        return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (
            self._head,
            delta,
            reason,
            usage,
        )


_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # by status


def error_of(problem: Problem) -> dict[str, Any]:
    """The object that OpenAI's clients read."""
    kind = (
        "server_error" if problem.status >= 500 else _ERROR_TYPES.get(problem.status, "invalid_request_error")
    )
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def model_of(body: Mapping[str, object]) -> str:
    """Raises `Problem`."""
    if not (model := required(body, "model", str)):
        raise invalid("model", "must not be empty: `auto` leaves the choice to the rules")
    return model


def rest_of(final: str, streamed: str, here: str) -> str:
    """What was not streamed of a final answer; `here`: what of the stream this answer has said."""
    if final.startswith(streamed):
        return final[len(streamed) :]
    if streamed.startswith(final) or final.endswith(here):
        return ""  # a stream of over 8 MiB is cut off in `final_answer`
    return f"\n\n{final}"


def tool_line(name: str, content: Any) -> str:
    fields = content if isinstance(content, Mapping) else {}
    tool = fields.get("tool", "a tool")
    if name == protocol.TOOL_CALL:
        return f"\n[{tool} {as_text(fields.get('args'))}]\n"
    verdict = "" if fields.get("success", True) else " failed"
    return f"\n[{tool}{verdict}: {as_text(fields.get('result'))[:1000]}]\n"
