"""No, with a reason: the HTTP answer of a client that does not get a session."""

from __future__ import annotations

import json
from http import HTTPStatus


class Refusal(Exception):
    """Raised anywhere before the 101; the gateway writes it to the client and closes.

    `code` is stable and for programs, `reason` is one sentence for people.
    """

    def __init__(
        self, status: int, code: str, reason: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.headers = headers

    @property
    def response(self) -> bytes:
        body = json.dumps({"code": self.code, "reason": self.reason}).encode() + b"\n"
        return http_response(self.status, (("Content-Type", "application/json"), *self.headers), body)


class ClientGone(Exception):
    """The client left before it had an answer; there is nobody to tell."""


def http_response(status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> bytes:
    """A complete answer, after which the connection is closed."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    fields = (*headers, ("Content-Length", str(len(body))), ("Connection", "close"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1") + body
