"""AG-UI's RunAgentInput: which thread and run, what is said, and which questions are answered. Pure.

Strict on the types of what is read, lenient on all else: real clients send many fields. Of `messages` the
newest one of the user is said; those before are the history by which the session is found. `system` and
`developer` are instructions. `tools`, `context`, `state` and `forwardedProps` are handed to the agent in the
message's metadata, as `agui`; none of them is run or applied here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from attrs import frozen

from ..core.plain_text import yes_or_no
from .problem import invalid, optional, required, typed
from .prompt import Attachment, ChatMessage, Content, Prompt, attachment, content_of

PATIENCE_S = 30 * 86_400
"""That a question waits for its `resume`, unless the agent or its service says how long."""
FINAL = "-final"
"""How the id of a message ends that is the whole answer, in place of what was streamed before it."""
_LONGEST_THREAD = 200
_LONGEST_RUN = 256  # a `step_id`
_MOST_ANSWERS = 64
_HANDED_ON = ("state", "tools", "context", "forwardedProps")
_ASIDE = ("system", "developer")
_UNSAID = ("tool", "reasoning", "activity")  # what the agent did, as the client was shown it
_MEDIA = ("image", "audio", "video", "document")


@frozen
class Answer:
    """To a question (an interrupt)."""

    question: str  #: its `step_id`
    cancelled: bool  #: it is given up, which means no
    content: dict[str, Any]  #: `confirmed`, and what else the client's payload says


@frozen
class RunInput:
    thread_id: str
    run_id: str
    modern: bool  #: the client speaks AG-UI 1.0, and not a version before it
    messages: Sequence[dict[str, Any]]  #: up to the newest of the user, as the client has them
    prompt: Prompt | None  #: None: the user has said nothing
    nothing_new: bool  #: the client has more messages behind the user's newest
    answers: Sequence[Answer]
    calls: frozenset[str]  #: ids of the tool calls before that message

    @classmethod
    def of(cls, body: Mapping[str, object], *, connects: bool = False) -> RunInput:
        """`connects`: it only reads. Raises `Problem`."""
        thread_id, run_id = required(body, "threadId", str), required(body, "runId", str)
        if not thread_id:
            raise invalid("threadId", "must not be empty")
        if not 0 < len(run_id) <= _LONGEST_RUN:
            raise invalid("runId", f"must have 1 to {_LONGEST_RUN} characters")
        items = optional(body, "messages", list) or []
        messages = [_message(typed(item, dict, f"messages[{n}]"), n) for n, item in enumerate(items)]
        said = [_said(message, f"messages[{n}]") for n, message in enumerate(messages)]
        users = [n for n, each in enumerate(said) if each is not None and each.role == "user"]
        newest = users[-1] if users else -1
        answers = _answers(optional(body, "resume", list) or [])
        message = said[newest] if users else None
        prompt = None
        if message is not None and (message.text or message.attachments):
            texts = [text for m in messages if m["role"] in _ASIDE and (text := _content(m, "")[0])]
            earlier = list(zip(messages[:newest], said, strict=False))
            prompt = Prompt(message, _folded(earlier), "\n\n".join(texts), _beside(body))
        elif not answers and not connects:
            raise invalid("messages", "must have a message of the user that is not empty")
        return cls(
            thread_id,
            run_id,
            modern=optional(body, "protocolVersion", str) is not None,
            messages=messages[: newest + 1],
            prompt=prompt,
            nothing_new=newest < len(messages) - 1,
            answers=answers,
            calls=frozenset(_calls(messages[:newest])),
        )


def session_name(thread_id: str) -> str:
    """A tilde is for the branches of a thread."""
    if len(thread_id) > _LONGEST_THREAD:
        thread_id = sha256(thread_id.encode("utf-8", "replace")).hexdigest()
    return f"agui:{thread_id.replace('~', '~~')}"


def _beside(body: Mapping[str, object]) -> dict[str, Any]:
    handed_on = {name: body[name] for name in _HANDED_ON if body.get(name)}
    return {"confirm_timeout": PATIENCE_S} | ({"agui": handed_on} if handed_on else {})


def _message(fields: dict[str, Any], place: int) -> dict[str, Any]:
    required(fields, "role", str, f"messages[{place}].")
    return fields if isinstance(fields.get("id"), str) else {**fields, "id": f"message-{place}"}


def _said(message: Mapping[str, Any], where: str) -> ChatMessage | None:
    role = message["role"]
    if role in _UNSAID:
        return None
    if role not in ("user", "assistant", *_ASIDE):
        roles = ", ".join(sorted(("user", "assistant", *_ASIDE, *_UNSAID)))
        raise invalid(f"{where}.role", f"must be one of {roles}")
    text, attachments = _content(message, f"{where}.content")
    return None if role in _ASIDE else ChatMessage(role, text, attachments)


def _content(message: Mapping[str, Any], where: str) -> Content:
    return content_of(message.get("content"), where, _part)


def _part(kind: str, part: dict[str, Any], here: str) -> str | Attachment:
    if kind == "text":
        return required(part, "text", str, f"{here}.")
    if kind in _MEDIA:
        return _attachment(kind, required(part, "source", dict, f"{here}."), f"{here}.source")
    if kind == "binary":  # as it was before 1.0
        data = optional(part, "data", str, f"{here}.")
        url = optional(part, "url", str, f"{here}.")
        mime_type = required(part, "mimeType", str, f"{here}.")
        source = {"type": "url", "value": url} if data is None else {"type": "data", "value": data}
        source["mimeType"] = mime_type
        kind = "image" if mime_type.startswith("image/") else "document"
        return _attachment(kind, source, here, optional(part, "filename", str, f"{here}."))
    known = ", ".join(("text", *_MEDIA))
    raise invalid(f"{here}.type", f"{kind[:40]!r} is not supported: send {known}")


def _attachment(kind: str, source: Mapping[str, Any], where: str, name: str | None = None) -> Attachment:
    value = required(source, "value", str, f"{where}.")
    match required(source, "type", str, f"{where}."):
        case "data":
            value = f"data:{required(source, 'mimeType', str, f'{where}.')};base64,{value}"
        case "url":
            pass
        case other:
            raise invalid(f"{where}.type", f"{other[:40]!r} is not supported: send data or url")
    return attachment("image" if kind == "image" else "file", value, f"{where}.value", name)


def _folded(messages: Sequence[tuple[Mapping[str, Any], ChatMessage | None]]) -> tuple[ChatMessage, ...]:
    """A turn's answer is several messages to the client, with what the agent did between, and one to us."""
    folded: list[ChatMessage] = []
    for message, said in messages:
        if said is None or (said.role == "assistant" and not said.text):
            continue
        if said.role == "assistant" and folded and folded[-1].role == "assistant":
            before = "" if str(message["id"]).endswith(FINAL) else folded[-1].text
            folded[-1] = ChatMessage("assistant", before + said.text)
        else:
            folded.append(said)
    return tuple(folded)


def _calls(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for message in messages:
        calls = message.get("toolCalls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                found.append(call["id"])
    return found


def _answers(items: list[object]) -> tuple[Answer, ...]:
    if len(items) > _MOST_ANSWERS:
        raise invalid("resume", f"must have at most {_MOST_ANSWERS} answers")
    answers = []
    for place, item in enumerate(items):
        where = f"resume[{place}]"
        entry = typed(item, dict, where)
        question = required(entry, "interruptId", str, f"{where}.")
        status = required(entry, "status", str, f"{where}.")
        if status not in ("resolved", "cancelled"):
            raise invalid(f"{where}.status", "must be resolved or cancelled")
        payload = entry.get("payload")
        confirmed = status == "resolved" and _confirmed(payload, f"{where}.payload")
        content = payload if isinstance(payload, dict) else {}
        answers.append(Answer(question, status == "cancelled", {**content, "confirmed": confirmed}))
    return tuple(answers)


def _confirmed(payload: object, where: str) -> bool:
    """Only yes is yes."""
    said = payload
    if isinstance(said, dict):
        said = next((said[name] for name in ("confirmed", "approved") if name in said), None)
    if isinstance(said, str):
        said = yes_or_no(said)
    if not isinstance(said, bool):
        raise invalid(where, 'must say yes or no, as in {"confirmed": true}')
    return said
