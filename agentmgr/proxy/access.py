"""May this client come in at all? Origin, credentials, and how much its address asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote

from attrs import evolve, frozen

from ..core.admission import RateLimit, remove_one
from ..core.hosts import origin_allowed
from ..models import Token
from ..protocol import BEARER
from ..websocket.head import RequestHead
from ..websocket.refusal import Refusal, RefusalCode
from .limits import GatewayLimits

_TICKET = "ticket="  # in the query


@frozen
class Identity:
    """Who a client has proved to be."""

    name: str
    services: frozenset[str] | None = None  #: the names it may connect to; None: all
    token_id: str | None = None  #: of the token that proved it: what it opened ends with that (`keep_tokens`)
    expires_at: datetime | None = None  #: then what it opened ends too

    @classmethod
    def of(cls, token: Token | None, now: datetime) -> Identity | None:
        """Whose token it is, where it is one and opens anything now."""
        if token is None:
            return None
        services = token.connects_to(now)
        if services is not None and not services:
            return None
        return cls(token.name, services, token.token_id, token.expires_at)


class Authenticator(Protocol):
    """Knows the tokens. Comparisons take the same time whatever is compared; nothing here is logged."""

    @property
    def required(self) -> bool:
        """Whether a client needs a token or ticket just now."""

    async def bearer(self, token: str) -> Identity | None:
        """The identity of a valid token; None for any other text."""

    async def ticket(self, ticket: str) -> Identity | None:
        """The identity of a valid ticket, which is used up by this call; None for any other text."""


def check_origin(head: RequestHead, allowed: frozenset[str] | None, own: frozenset[str]) -> None:
    """Raises `Refusal` for a browser's page that is not among these. Programs send no Origin."""
    origin = head.by_name.get("origin", "")
    if origin not in own and not origin_allowed(origin, allowed):
        reason = (
            "a page that is opened from disk has the origin null: `--allow-origin null` lets it in"
            if origin == "null"
            else f"pages of {origin.lower()} are not among the allowed origins"
        )
        raise Refusal(403, RefusalCode.ORIGIN_NOT_ALLOWED, reason)


async def authenticate(
    head: RequestHead, authenticator: Authenticator
) -> tuple[Identity | None, RequestHead]:
    """The identity, and the head without the credential, which the instance must not see.

    Where none is required there may be none, and one that is not ours goes on to the instance. Raises
    `Refusal`.
    """
    if (shown := _credential(head)) is not None:
        judge = authenticator.ticket if shown.is_ticket else authenticator.bearer
        if (identity := await judge(shown.text)) is not None:
            return identity, shown.rest
    if authenticator.required:
        raise unauthorized("this token or ticket is not valid" if shown else "a token is needed here")
    return None, head


@frozen
class _Credential:
    text: str
    rest: RequestHead  #: the head without it
    is_ticket: bool = False


def _credential(head: RequestHead) -> _Credential | None:
    """The one that a client shows, in the header, as a subprotocol or in the query."""
    scheme, _, token = head.by_name.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return _Credential(token.strip(), head.replaced("Authorization", ""))
    for entry in head.subprotocols:
        if entry.startswith(BEARER):
            others = ", ".join(other for other in head.subprotocols if not other.startswith(BEARER))
            return _Credential(entry.removeprefix(BEARER), head.replaced("Sec-WebSocket-Protocol", others))
    path, _, query = head.target.partition("?")
    parts = query.split("&")
    for part in parts:
        if part.startswith(_TICKET):
            rest = "&".join(other for other in parts if not other.startswith(_TICKET))
            stripped = evolve(head, target=f"{path}?{rest}" if rest else path)
            return _Credential(unquote(part.removeprefix(_TICKET)), stripped, is_ticket=True)
    return None


def unauthorized(reason: str) -> Refusal:
    return Refusal(401, RefusalCode.UNAUTHORIZED, reason, (("WWW-Authenticate", 'Bearer realm="agentmgr"'),))


class Quotas:
    """What each client address has and asks for, against its limits."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._rate = RateLimit(limits.handshakes_per_address_s)
        self._per_address = limits.connections_per_address
        self._open: dict[str, int] = {}

    @contextmanager
    def admit(self, address: str, now: float) -> Iterator[None]:
        """Counts one connection of that address while the block runs. Raises `Refusal`."""
        retry = (("Retry-After", "1"),)
        if not self._rate.allows(address, now):
            raise Refusal(429, RefusalCode.TOO_MANY_HANDSHAKES, "this address connects too often", retry)
        count = self._open.get(address, 0)
        if self._per_address and count >= self._per_address:
            raise Refusal(429, RefusalCode.TOO_MANY_SESSIONS, "this address has too many connections", retry)
        self._open[address] = count + 1
        try:
            yield
        finally:
            remove_one(self._open, address)
