"""What an operation of the API is: its path, what it takes, what it gives, and the function that does it.

Handlers are plain functions from a `Call` to an `Answer`. `app.py` turns them into routes and `openapi.py`
into the document, both from the same table, so neither can say what the other does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from attrs import Factory, frozen
from quart import Response
from werkzeug.datastructures import Headers

from ..errors import VersionMismatch
from ..models import Token, utc_now

if TYPE_CHECKING:
    from ..manager import AgentManager
    from .auth import Access
    from .metrics import Metrics

BASE = "/api/v1"

T = TypeVar("T")


@frozen
class Server:
    """What the handlers share: the manager, and the life of the server that they run in."""

    manager: AgentManager
    nursery: trio.Nursery  #: owns work that outlives the request which asked for it
    stopping: trio.Event  #: set when the server should end; long answers end with it
    metrics: Metrics
    control: bool = False  #: it serves the control socket
    access: Access | None = None  #: who may ask; None: whoever can open the socket


@frozen
class Call:
    """One request, judged and parsed."""

    server: Server
    params: Mapping[str, str]
    headers: Headers
    token: Token | None  #: that it came with
    peer_uid: int | None = None  #: the user at the other end, as far as the kernel says

    @property
    def manager(self) -> AgentManager:
        return self.server.manager

    @property
    def ref(self) -> str:
        return self.params["ref"]

    @property
    def expected_version(self) -> int | None:
        """The version in `If-Match`; None where anything goes (RFC 9110 section 13.1.1).

        0, which nothing has, for what is no version: the answer is a 412, unless the request is wrong anyhow.
        """
        value = self.headers.get("If-Match")
        if value is None or value.strip() == "*":
            return None
        text = value.strip().strip('"')
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0

    @property
    def sees_conversations(self) -> bool:
        return self.token is None or self.token.allows("sessions", utc_now())

    def check_version(self, now: int) -> None:
        """Raises `VersionMismatch` where `If-Match` names another version than `now`."""
        if self.expected_version not in (None, now):
            raise VersionMismatch("It was changed since you read it; read it again.")

    async def carry_out(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work` whether or not the client waits: cancelling the request ends only the waiting."""
        done = trio.Event()
        outcome: list[T | Exception] = []

        async def run() -> None:
            try:
                outcome.append(await work())
            except Exception as error:  # goes to the client, or is dropped if it has left
                outcome.append(error)
            done.set()

        self.server.nursery.start_soon(run)
        await done.wait()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


@frozen
class Answer:
    """A value of ours, to be sent as JSON."""

    value: Any
    status: int = 200
    headers: Mapping[str, str] = Factory(dict)


Handler = Callable[..., Awaitable[Answer | Response]]


@frozen(eq=False)
class Operation:
    method: str
    path: str  #: as in OpenAPI: `/services/{ref}`
    handler: Handler
    summary: str
    tag: str
    gives: Mapping[int, Any]  #: status -> class of the body, or None for no body
    query: type[Any] | None = None
    body: type[Any] | None = None
    body_required: bool = True
    partial_body: bool = False  #: an object with some of its fields, which is merged with what is there
    media_type: str = "application/json"
    problems: Sequence[int] = ()
    streams: bool = False  #: the answer may go on for ever
    control_only: bool = False  #: on the control socket only
    scope: str | None = "admin"  #: what a token needs for it, one of these words; None: it is public
    example: Any = None  #: of the body

    @property
    def name(self) -> str:
        return self.handler.__name__


class Operations:
    """The operations of one resource, in the order of their definition."""

    def __init__(
        self, tag: str, *, base: str = BASE, control_only: bool = False, scope: str | None = "read"
    ) -> None:
        self.tag = tag
        self.base = base
        self.control_only = control_only
        self.scope = scope  #: for reading; whatever else needs `admin`, unless it says otherwise
        self.table: list[Operation] = []

    def add(
        self, method: str, path: str, *, gives: Mapping[int, Any], **details: Any
    ) -> Callable[[Handler], Handler]:
        details.setdefault("scope", self.scope if method == "GET" else "admin")

        def register(handler: Handler) -> Handler:
            summary = (handler.__doc__ or "").strip().split("\n")[0]
            self.table.append(
                Operation(
                    method=method,
                    path=self.base + path,
                    handler=handler,
                    summary=summary,
                    tag=self.tag,
                    gives=gives,
                    control_only=self.control_only,
                    **details,
                )
            )
            return handler

        return register
