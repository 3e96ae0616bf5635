"""What the API answers when it cannot do what was asked: RFC 9457 problem documents.

Each has our stable `code` beside the standard members, and for a bad body `errors` with the path of each bad
field. A failure that is our own fault gets an id, which is in the log beside the traceback; the
traceback itself never leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from quart import Response, g
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from .. import errors
from ..codec import to_json
from ..errors import AgentManagerError, FieldProblem

log = logging.getLogger("agentmgr.api")

MEDIA_TYPE = "application/problem+json"

_STATUS: Mapping[type[AgentManagerError], int] = {
    errors.InvalidRequest: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooManyTickets: 429,
    errors.ManagerAlreadyRunning: 409,
    errors.Unprocessable: 422,
    errors.ServiceFailed: 422,  # the request was right, the program that it names was not
    errors.NoServiceAvailable: 503,
    errors.ManagerNotRunning: 503,
    errors.CannotReachManager: 503,  # of nodes: no interface answers with it
    errors.ManagerReplaced: 503,  # of a manager that ends for it: the same
    errors.StorageError: 503,
}

#: Werkzeug's own sentences speak to a person before a browser.
_DETAILS: Mapping[int, str] = {
    404: "Nothing is at this path; `/openapi.json` has all paths.",
    405: "This path does not take that method; `Allow` has those that it takes.",
    408: "The body did not come in time.",
    413: "The body is too large.",
}


class HttpProblem(Exception):
    """A refusal that only exists over HTTP, such as a media type that we do not speak."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def status_of(error: AgentManagerError) -> int:
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    document: dict[str, object] = {
        "type": f"urn:agentmgr:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if fields:
        document["errors"] = [{"path": field.path, "message": field.message} for field in fields]
    return Response(to_json(document), status=status, headers=dict(headers or {}), content_type=MEDIA_TYPE)


def answer_error(error: Exception) -> Response:
    """The problem document for whatever a handler raised."""
    if isinstance(error, HttpProblem):
        return problem(error.status, error.code, error.detail, headers=error.headers)
    if isinstance(error, AgentManagerError) and status_of(error) != 500:
        return problem(status_of(error), error.code, error.message, fields=error.fields)
    if isinstance(error, HTTPException) and not isinstance(error, RequestRedirect) and error.code:
        # Quart's own: no such path, method not allowed, body too large, body too slow.
        code = error.name.lower().replace(" ", "_")
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        detail = _DETAILS.get(error.code) or error.description or error.name
        return problem(error.code, code, detail, headers=headers)
    log.error("internal error", exc_info=error, extra={"request_id": g.request_id})
    return problem(
        500, "internal_error", f"Something went wrong in agentmgr itself; its log has it as {g.request_id}."
    )
