"""A refusal: the answer to a handshake that gets no 101, from the gateway or from an agent's host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus

JSON = ("Content-Type", "application/json")


class RefusalCode(StrEnum):
    """Why a client was refused, for programs. The values are public; `WHAT_HELPS` says what to do."""

    # The request
    BAD_REQUEST = "bad_request"
    HEAD_TOO_LARGE = "head_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    UPGRADE_REQUIRED = "upgrade_required"
    UNSUPPORTED_VERSION = "unsupported_version"
    # Who asks, and from where
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    HOST_NOT_ALLOWED = "host_not_allowed"  #: the host's own port
    USER_NOT_ALLOWED = "user_not_allowed"  #: the host's own port
    WRONG_PROOF = "wrong_proof"  #: the host's own port, to a gateway
    PROXY_NOT_TRUSTED = "proxy_not_trusted"
    BAD_PROXY_HEADER = "bad_proxy_header"
    # What is asked for
    SERVICE_NOT_FOUND = "service_not_found"
    SESSION_ELSEWHERE = "session_elsewhere"
    # Not now
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    TOO_MANY_SESSIONS = "too_many_sessions"  #: connections of one client address
    TOO_MANY_CONNECTIONS = "too_many_connections"  #: of the whole gateway
    NO_SERVICE_AVAILABLE = "no_service_available"
    AT_CAPACITY = "at_capacity"
    # The instance
    BAD_GATEWAY = "bad_gateway"
    BACKEND_TIMEOUT = "backend_timeout"
    BACKEND_REFUSED = "backend_refused"  #: only counted: the client gets the instance's own answer


WHAT_HELPS: Mapping[RefusalCode, tuple[str, str]] = {
    RefusalCode.BAD_REQUEST: ("400", "a client that speaks HTTP as it should"),
    RefusalCode.HEAD_TOO_LARGE: ("431", "fewer or shorter headers, and a shorter query"),
    RefusalCode.REQUEST_TIMEOUT: ("408", "a client that sends its request in time"),
    RefusalCode.UPGRADE_REQUIRED: (
        "426",
        "a WebSocket client; plain HTTP goes to /v1, /agui and the like, and to services with --ready http",
    ),
    RefusalCode.UNSUPPORTED_VERSION: ("426", "a WebSocket client of version 13, as all of today are"),
    RefusalCode.UNAUTHORIZED: ("401", "a token (`agentmgr tokens create NAME --scope connect`) or a ticket"),
    RefusalCode.FORBIDDEN: ("403", "a token that opens that service"),
    RefusalCode.ORIGIN_NOT_ALLOWED: ("403", "--allow-origin for the page's origin; null for a file on disk"),
    RefusalCode.PROXY_NOT_TRUSTED: (
        "403",
        "--trusted-proxy with the address of the proxy before the gateway",
    ),
    RefusalCode.BAD_PROXY_HEADER: ("400", "a proxy that sends the PROXY protocol, v1 or v2"),
    RefusalCode.SERVICE_NOT_FOUND: ("404", "a name that `agentmgr list` shows"),
    RefusalCode.SESSION_ELSEWHERE: (
        "409 or 421",
        "the address of the service that holds the session; the reason names it",
    ),
    RefusalCode.TOO_MANY_HANDSHAKES: ("429", "coming back later, as Retry-After says"),
    RefusalCode.TOO_MANY_SESSIONS: ("429", "fewer connections from one address, or coming back later"),
    RefusalCode.TOO_MANY_CONNECTIONS: ("503", "coming back later, or more open files for the gateway"),
    RefusalCode.NO_SERVICE_AVAILABLE: (
        "503",
        "`agentmgr start`; `agentmgr routes test` says which service a client goes to",
    ),
    RefusalCode.AT_CAPACITY: ("503", "coming back later, `agentmgr scale`, or a larger --max-sessions"),
    RefusalCode.BAD_GATEWAY: ("502", "a look at `agentmgr logs NAME`: the service broke the connection"),
    RefusalCode.BACKEND_TIMEOUT: (
        "504",
        "a look at `agentmgr logs NAME`: the service did not answer in time",
    ),
}
"""The HTTP status of each refusal of the gateway, and what helps. A service's own refusals are its own."""


class Refusal(Exception):
    """Raised anywhere before the 101; gateway or host sends it to the client and closes the connection.

    `code` is stable and for programs, `reason` is one sentence for people.
    """

    def __init__(
        self,
        status: int,
        code: RefusalCode,
        reason: str,
        headers: tuple[tuple[str, str], ...] = (),
        details: Mapping[str, str] | None = None,
    ) -> None:
        """`details` are more fields of the answer, for programs."""
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.headers = headers
        self.details = details or {}

    @property
    def response(self) -> bytes:
        """The complete answer."""
        body = json.dumps({"code": self.code, "reason": self.reason, **self.details})
        return http_response(self.status, (JSON, *self.headers), body.encode() + b"\n")


def read_refusal(body: bytes) -> tuple[str | None, str]:
    """Code and reason in the body of an answer; None and "" where it is no refusal of ours."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return None, ""
    reason = fields.get("reason") or fields.get("detail")  # as a host of an older version calls it
    code = fields.get("code")
    return code if reason and isinstance(code, str) else None, str(reason or "")


def elsewhere(answer: bytes) -> str | None:
    """The instance that holds the session, by an answer of an instance that does not."""
    code, _ = read_refusal(body := answer.partition(b"\r\n\r\n")[2])
    instance = json.loads(body).get("instance") if code == RefusalCode.SESSION_ELSEWHERE else None
    return instance if isinstance(instance, str) else None


def http_response(
    status: int, headers: tuple[tuple[str, str], ...], body: bytes, *, stays: bool = False
) -> bytes:
    """A complete answer, after which the connection is closed unless it `stays`."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    connection = "keep-alive" if stays else "close"
    fields = (*headers, ("Content-Length", str(len(body))), ("Connection", connection))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1") + body
