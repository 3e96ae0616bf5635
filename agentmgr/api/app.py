"""The HTTP view of one manager: routes made of the table of operations."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from quart import Response, g, request
from quart_trio import QuartTrio

from ..codec import from_plain, parse_json, to_json
from ..errors import InvalidRequest, VersionMismatch
from ..models import new_id
from ..websocket.refusal import RefusalCode
from .connection import PEER_UID
from .operations import BASE, Answer, Call, Operation, Server
from .problems import HttpProblem, answer_error
from .queries import NoQuery, parse_query
from .resources import operations
from .throttle import check_excess

log = logging.getLogger("agentmgr.api")

MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 30.0


def make_app(server: Server) -> QuartTrio:
    """The application."""
    app = QuartTrio("agentmgr.api", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    app.config["RESPONSE_TIMEOUT"] = None  # the server cuts a client that takes nothing
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    _name_and_measure(app, server)
    table = operations(control=server.control)
    for operation in table:
        app.add_url_rule(
            # What is left of a path may have slashes.
            operation.path.replace("{path}", "<path:path>").replace("{", "<").replace("}", ">"),
            endpoint=operation.name,
            view_func=_view(operation, server),
            methods=[operation.method],
            provide_automatic_options=False,
        )

    if (access := server.access) is not None:
        scopes = {operation.name: operation.scope for operation in table}

        @app.before_request
        async def refuse_strangers() -> None:
            # A path that does not exist needs what reading needs: its 404 says what is not there.
            scope = scopes.get(request.endpoint or "", "read")
            shows = request.method == "GET" and not request.path.startswith(BASE)
            g.token = access.check(
                request.headers, scope, method=request.method, peer_uid=_peer_uid(), navigates=shows
            )

    app.register_error_handler(Exception, answer_error)
    return app


def _peer_uid() -> int | None:
    uid: int | None = request.scope.get("state", {}).get(PEER_UID)
    return uid


# What a proxy before us may have given it; anything else is not worth a place in the log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SESSION_ID = re.compile(r"(ses_\w{8})[\w.]+")  #: whoever knows the whole of it may speak in the session


def _name_and_measure(app: QuartTrio, server: Server) -> None:
    """Every request has an id, which is in its answer and in the log.

    It is given along by hand: in a context variable, every task that a request starts would keep it, and an
    instance lives longer than the request which started it.
    """

    @app.before_request
    async def begin() -> None:
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        g.began = trio.current_time()
        check_excess(request.scope)

    @app.after_request
    async def end(response: Response) -> Response:
        seconds = trio.current_time() - g.began
        # Of what never got to an operation, no word of the client's becomes a label.
        server.metrics.answered(request.endpoint or "none", response.status_code, seconds)
        response.headers["X-Request-Id"] = g.request_id
        changes = request.method not in ("GET", "HEAD") and response.status_code < 400
        path = request.scope["raw_path"].decode("latin-1")  # as it came: without the query, nothing decoded
        log.log(
            logging.INFO if changes else logging.DEBUG,
            "%s %s: %d",
            request.method,
            _SESSION_ID.sub(r"\1…", path),
            response.status_code,
            extra={"request_id": g.request_id, "seconds": round(seconds, 6), "client": request.remote_addr},
        )
        return response


def _view(operation: Operation, server: Server) -> Callable[..., Awaitable[Response]]:
    async def view(**params: str) -> Response:
        _judge_accept(operation)
        parsed: list[Any] = []
        query = parse_query(dict(request.args.lists()), operation.query or NoQuery)
        if operation.query is not None:
            parsed.append(query)
        if operation.body is not None:
            parsed.append(await _read_body(operation))
        if operation.streams and request.method == "HEAD":
            return Response(
                b"", content_type=operation.media_type
            )  # without a body Quart asks asyncio for one
        call = Call(server, params, request.headers, g.get("token"), _peer_uid())
        try:
            with server.manager.while_valid(call.token) as valid:
                answer = await operation.handler(call, *parsed)
        except VersionMismatch as error:
            if call.expected_version is None:  # another change came in between; versions were not spoken of
                raise
            raise HttpProblem(412, error.code, error.message) from None
        if valid.cancelled_caught:
            raise HttpProblem(
                401, RefusalCode.UNAUTHORIZED, "This token was revoked, or has expired, meanwhile."
            )
        return _respond(answer) if isinstance(answer, Answer) else answer

    return view


def _judge_accept(operation: Operation) -> None:
    accepted = request.accept_mimetypes
    if accepted and not accepted.best_match([operation.media_type]):
        raise HttpProblem(
            406, "not_acceptable", f"This answers {operation.media_type}, which Accept does not allow."
        )


async def _read_body(operation: Operation) -> Any:
    # Decoded here: Quart's get_json answers 500 to bytes that are not UTF-8.
    data = await request.get_data()
    if not data and not operation.body_required:
        return None
    if request.mimetype != "application/json":
        raise HttpProblem(
            415,
            "unsupported_media_type",
            "Send the body as JSON, with the header `Content-Type: application/json`.",
        )
    plain = parse_json(data)
    if not operation.partial_body:
        return from_plain(plain, operation.body or type(None))
    if not isinstance(plain, dict):
        raise InvalidRequest("the body must be an object")
    return plain


def _respond(answer: Answer) -> Response:
    headers = {"Cache-Control": "no-store", **answer.headers}
    if answer.value is None:
        response = Response(b"", status=answer.status, headers=headers)
        del response.headers["Content-Type"]
        return response
    body = to_json(answer.value).encode()
    return Response(body, status=answer.status, headers=headers, content_type="application/json")
