"""What is wrong with a request, before it is said in the shape of its protocol."""

from __future__ import annotations

from collections.abc import Sequence

from ..websocket.refusal import Refusal

Headers = Sequence[tuple[str, str]]


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
