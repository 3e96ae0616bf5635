"""What is wrong with a request, before it is said in the shape of its protocol; and checks of its fields.

Problem
├── NotTaken     the agent's host did not do what it was asked
└── DoorClosed   the connection to the agent ended (`door`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..protocol import TIMEOUT, ErrorCode
from ..websocket.refusal import Refusal

Headers = Sequence[tuple[str, str]]
HAS_RUN = 424
"""The status of what failed when a turn had begun: to ask again would run it again, with all its effects.

SDKs do so by themselves after a 408, 409, 429 and each 5xx (the Vercel AI SDK twice, whatever
`X-Should-Retry` says), and not after this one, by which OpenAI too says that what it called has failed.
"""


class Problem(Exception):
    """A request cannot be answered as asked. Its front says so in its protocol's own shape.

    `code` is for programs, `param` the part of the request that is wrong, where it is one. `retry` says
    whether asking again makes sense; None: what the status says.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Headers = (),
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers
        self.retry = retry

    @classmethod
    def of(cls, refusal: Refusal) -> Problem:
        return cls(refusal.status, refusal.code, refusal.reason, headers=refusal.headers)


_STATUS = {
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.BUSY: 409,
    ErrorCode.DUPLICATE: 409,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.SESSION_ELSEWHERE: 503,
    ErrorCode.SESSION_UNREACHABLE: 503,
    ErrorCode.MAX_SESSIONS: 503,
    ErrorCode.HOST_FULL: 503,
    ErrorCode.DRAINING: 503,
}
"""Of a `system.error`; any other one says that the message was not one that can be taken."""


class NotTaken(Problem):
    """The agent's host does not do what it was asked. `content` is that of its `system.error`."""

    def __init__(self, content: Any) -> None:
        self.content: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
        code = str(self.content.get("code", "bad_gateway"))
        status = next((status for known, status in _STATUS.items() if known == code), 400)
        super().__init__(status, code, str(self.content.get("message", "the agent did not take the message")))


def failed(event: str, content: Any) -> Problem:
    """The end of a turn that was an `agent.error` or `agent.timeout`; the turn has run, so asking again would
    run it again.
    """
    fields = content if isinstance(content, Mapping) else {"message": str(content)}
    if event == TIMEOUT:
        limit = fields.get("timeout_s")
        return Problem(HAS_RUN, "turn_timeout", f"The agent took longer than {limit} s.", retry=False)
    code = str(fields.get("code", "agent_error"))
    message = str(fields.get("message") or "the agent failed")
    if (error_id := fields.get("error_id")) and str(error_id) not in message:
        message += f" (its log has more: {error_id})"
    return Problem(HAS_RUN, code, message, retry=False)


Kind = TypeVar("Kind")
_WORDS: dict[type[Any], str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    dict: "an object",
    list: "an array",
}


def typed(value: object, kind: type[Kind], param: str) -> Kind:
    """Raises `Problem` for a value of another type."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise invalid(param, f"must be {_WORDS[kind]}")


def optional(fields: Mapping[str, object], name: str, kind: type[Kind], within: str = "") -> Kind | None:
    """A field that may be missing or null. Raises `Problem`."""
    value = fields.get(name)
    return None if value is None else typed(value, kind, within + name)


def required(fields: Mapping[str, object], name: str, kind: type[Kind], within: str = "") -> Kind:
    """Raises `Problem`."""
    if fields.get(name) is None:
        raise Problem(400, "missing_field", f"{within}{name} is missing.", param=within + name)
    return typed(fields[name], kind, within + name)


def invalid(param: str, problem: str) -> Problem:
    return Problem(400, "invalid_field", f"{param} {problem}.", param=param)
