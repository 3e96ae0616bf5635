"""Problems in the shape of OpenAI's API. Pure."""

from __future__ import annotations

import json
from typing import Any

from .. import jsontext
from .problem import Problem

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def shape(problem: Problem) -> dict[str, Any]:
    """The object that OpenAI's clients read."""
    kind = "server_error" if problem.status >= 500 else _KINDS.get(problem.status, "invalid_request_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def body(problem: Problem) -> bytes:
    return jsontext.in_utf8(json.dumps(shape(problem), ensure_ascii=False))
