"""The Responses API: from a body to what is said, and what it goes on with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from .openai_chat import model_of
from .problem import Problem, invalid, optional, required, typed
from .prompt import Attachment, ChatMessage, Prompt, attachment, content_of, in_data_url
from .response_id import ResponseId

_ASIDE = frozenset({"system", "developer"})
_ROLES = _ASIDE | {"user", "assistant"}
_OF_ANSWERS = ("reasoning", "compaction", "mcp_list_tools", "mcp_approval_request")
_NOTHING = ChatMessage("user", "")
_PATIENT = {"confirm_timeout": 30 * 86_400}
"""A response that is stored is answered when a person has the time, unless the service says otherwise."""


@frozen
class Approval:
    """A person's answer to a question."""

    asking: ResponseId  #: the response that ended with it
    approve: bool
    reason: str


@frozen
class ResponsesRequest:
    model: str  #: "": that of the response before
    prompt: Prompt
    approval: Approval | None  #: then nothing is said
    previous: str | None
    conversation: str | None
    stream: bool
    background: bool
    store: bool
    metadata: Mapping[str, Any]
    cache_key: str | None

    @classmethod
    def of(cls, body: Mapping[str, object]) -> ResponsesRequest:
        """Strict on types, lenient on fields that it does not know. Raises `Problem`."""
        previous = optional(body, "previous_response_id", str)
        approval, referred, said, instructions = _input(required(body, "input", object))
        aside = (optional(body, "instructions", str) or "", *instructions)
        conversation = _conversation(body.get("conversation"))
        if referred is not None and previous is None and conversation is None and approval is None:
            previous = str(referred)
        if previous is not None and conversation is not None:
            raise invalid("conversation", "excludes previous_response_id")
        if (previous or conversation) is not None and any(each.role == "assistant" for each in said):
            raise invalid("input", "must only have what is new, and no message of the assistant")
        found_elsewhere = approval is not None or previous is not None
        model = "" if found_elsewhere and body.get("model") is None else model_of(body)
        store = optional(body, "store", bool) is not False
        prompt = _prompt(said, approval, joined=bool(previous or conversation))
        asked = cls(
            model,
            evolve(prompt, instructions="\n\n".join(filter(None, aside)), beside=_PATIENT if store else {}),
            approval,
            previous,
            conversation,
            stream=bool(optional(body, "stream", bool)),
            background=bool(optional(body, "background", bool)),
            store=store,
            metadata=_metadata(optional(body, "metadata", dict) or {}),
            cache_key=optional(body, "prompt_cache_key", str),
        )
        if asked.background and not asked.store:
            raise invalid("background", "needs store: what is not stored ends with its request")
        if not asked.store and asked.conversation is not None:
            raise invalid("conversation", "needs store: what is not stored ends with its request")
        return asked

    @property
    def echo(self) -> dict[str, Any]:
        """What the response shows of it."""
        conversation = {"id": self.conversation} if self.conversation else None
        return {
            "metadata": dict(self.metadata),
            "previous_response_id": self.previous,
            "conversation": conversation,
            "store": self.store,
        }


def _metadata(given: Mapping[str, object]) -> Mapping[str, Any]:
    """It is shown again, so it is bounded as OpenAI's is."""
    for name, value in given.items():
        if len(name) > 64 or len(typed(value, str, f"metadata.{name[:64]}")) > 512:
            raise invalid("metadata", "must have keys of up to 64 characters and values of up to 512")
    if len(given) > 16:
        raise invalid("metadata", "must have at most 16 keys")
    return given


def _conversation(value: object) -> str | None:
    """It is named, or an object that has its `id`."""
    name = required(value, "id", str, "conversation.") if isinstance(value, dict) else value
    if name is None:
        return None
    if not (found := typed(name, str, "conversation")):
        raise invalid("conversation", "must not be empty")
    return found


def _prompt(said: list[ChatMessage], approval: Approval | None, *, joined: bool) -> Prompt:
    if approval is not None:
        return Prompt(_NOTHING)
    if not said or said[-1].role != "user":
        raise invalid("input", "must end with a message of the user")
    newest, before = said[-1], said[:-1]
    if joined:  # all of it is new
        texts = "\n\n".join(filter(None, (each.text for each in said)))
        newest, before = (
            ChatMessage("user", texts, tuple(part for each in said for part in each.attachments)),
            [],
        )
    if not newest.text and not newest.attachments:
        raise invalid("input", "must not end with an empty message")
    return Prompt(newest, tuple(before))


def _input(value: object) -> tuple[Approval | None, ResponseId | None, list[ChatMessage], list[str]]:
    """The answer to a question that it ends with; the response that it refers to last, by one of its items;
    what was said, behind that; and what instructs.
    """
    if isinstance(value, str):
        return None, None, [ChatMessage("user", value)], []
    if not isinstance(value, list):
        raise invalid("input", "must be a string or an array")
    approval, referred, said, instructions = None, None, list[ChatMessage](), list[str]()
    for place, item in enumerate(value):
        where = f"input[{place}]"
        fields = typed(item, dict, where)
        kind = optional(fields, "type", str, f"{where}.") or "message"
        if kind == "mcp_approval_response":
            approval = _approval(fields, where)
        elif kind == "item_reference":
            referred = _named(fields, "id", where, "item_not_found", "no item of a response from here")
            approval = None
            said.clear()
        elif kind == "message":
            role = required(fields, "role", str, f"{where}.")
            if role not in _ROLES:
                raise invalid(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
            content = required(fields, "content", object, f"{where}.")
            text, attachments = content_of(content, f"{where}.content", _part)
            if role in _ASIDE:
                instructions.append(text)
            else:
                approval = None  # it was answered long ago
                if role == "assistant" and said and said[-1].role == "assistant":
                    text = said.pop().text + text  # a question, or a thought, was between them
                said.append(ChatMessage(role, text, attachments))
        elif not (kind in _OF_ANSWERS or kind.endswith(("_call", "_call_output"))):
            raise invalid(f"{where}.type", f"{kind[:40]!r} is not supported: send a message")
    return approval, referred, said, instructions


def _named(fields: Mapping[str, object], name: str, where: str, code: str, problem: str) -> ResponseId:
    """The response that the field names by one of its items. Raises `Problem`."""
    if (found := ResponseId.parse(required(fields, name, str, f"{where}."))) is None:
        raise Problem(400, code, f"{where}.{name} is {problem}.", param=f"{where}.{name}")
    return found


def _approval(fields: Mapping[str, object], where: str) -> Approval:
    asked_here = "no question that was asked here"
    asking = _named(fields, "approval_request_id", where, "approval_not_found", asked_here)
    approve = required(fields, "approve", bool, f"{where}.")
    return Approval(asking, approve, optional(fields, "reason", str, f"{where}.") or "")


def _part(kind: str, part: dict[str, Any], here: str) -> str | Attachment:
    match kind:
        case "input_text" | "output_text" | "text":
            return required(part, "text", str, f"{here}.")
        case "refusal":
            return required(part, "refusal", str, f"{here}.")
        case "input_image":
            url = required(part, "image_url", str, f"{here}.")
            return attachment("image", url, f"{here}.image_url")
        case "input_file":
            name = optional(part, "filename", str, f"{here}.")
            if (file_url := optional(part, "file_url", str, f"{here}.")) is not None:
                return attachment("file", file_url, f"{here}.file_url", name)
            data = required(part, "file_data", str, f"{here}.")
            return attachment("file", in_data_url(data), f"{here}.file_data", name)
    known = "send input_text, input_image or input_file"
    raise invalid(f"{here}.type", f"{kind[:40]!r} is not supported: {known}")
