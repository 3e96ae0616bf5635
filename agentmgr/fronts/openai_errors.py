"""Problems in the shape of OpenAI's API, and the checks of its fields that raise them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from .. import jsontext
from ..protocol import TIMEOUT, ErrorCode
from .problem import Problem

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
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


def shape(problem: Problem) -> dict[str, Any]:
    """The object that OpenAI's clients read."""
    kind = "server_error" if problem.status >= 500 else _KINDS.get(problem.status, "invalid_request_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def body(problem: Problem) -> bytes:
    return jsontext.in_utf8(json.dumps(shape(problem), ensure_ascii=False))


def not_taken(content: Any) -> Problem:
    """What a `system.error` says of a message or of a session."""
    fields = content if isinstance(content, Mapping) else {}
    code = str(fields.get("code", "bad_gateway"))
    status = next((status for known, status in _STATUS.items() if known == code), 400)
    return Problem(status, code, str(fields.get("message", "the agent did not take the message")))


def failed(event: str, content: Any) -> Problem:
    """The end of a turn that was an `agent.error` or `agent.timeout`; the turn has run, so asking again would
    run it again.
    """
    fields = content if isinstance(content, Mapping) else {"message": str(content)}
    if event == TIMEOUT:
        limit = fields.get("timeout_s")
        return Problem(504, "turn_timeout", f"The agent took longer than {limit} s.", retry=False)
    code = str(fields.get("code", "agent_error"))
    message = str(fields.get("message") or "the agent failed")
    if error_id := fields.get("error_id"):
        message += f" (its log has more: {error_id})"
    return Problem(502, code, message, retry=False)


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
