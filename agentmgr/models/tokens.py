"""Keys to the API and the gateway."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import Any

from attrs import Attribute, Factory, field, frozen

from .fields import NAME, check_name, invalid, new_id, rule, to_word_set, utc_now

_WHOLE = ("admin", "read", "sessions", "connect")  #: all services
_ONE_SERVICE = "connect:"
_LOGIN = re.compile(r"console-[0-9a-f]{12}")


@rule(
    minItems=1,
    items={"type": "string", "pattern": f"^(admin|read|sessions|connect|{_ONE_SERVICE}{NAME.pattern})$"},
)
def _scopes(_: Any, attribute: Attribute[Any], value: frozenset[str]) -> None:
    for scope in value:
        kind, _colon, name = scope.partition(":")
        if scope not in _WHOLE and not (kind == "connect" and NAME.fullmatch(name)):
            raise invalid(
                attribute.name,
                f"must be of admin, read, sessions, connect and connect:SERVICE, not {scope!r}",
            )
    if not value:
        raise invalid(
            attribute.name, "must name at least one of admin, read, sessions, connect, connect:SERVICE"
        )


@frozen
class Token:
    """A key to the API and the gateway. The key itself is shown once and not stored."""

    name: str = field(validator=check_name)
    scopes: frozenset[str] = field(converter=to_word_set, validator=_scopes)
    digest: str = field(repr=False)  #: SHA-256 of the key, which has 256 random bits: no salt is needed
    token_id: str = Factory(lambda: new_id("tok"))
    created_at: datetime = Factory(utc_now)
    expires_at: datetime | None = None
    version: int = 1

    def allows(self, scope: str, now: datetime) -> bool:
        """Whether it opens what needs `scope`; `admin` opens everything."""
        return not self.expired(now) and (scope in self.scopes or "admin" in self.scopes)

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    @property
    def connects(self) -> bool:
        """Whether it is, or was, a key made for the gateway."""
        return any(scope.startswith("connect") for scope in self.scopes)

    @property
    def is_login(self) -> bool:
        """Whether it was made for a login to the console: a browser keeps its key in a cookie."""
        return _LOGIN.fullmatch(self.name) is not None

    def connects_to(self, now: datetime) -> frozenset[str] | None:
        """The services that it opens through the gateway, by name; None: all of them."""
        if self.allows("connect", now):
            return None
        named = {scope.removeprefix(_ONE_SERVICE) for scope in self.scopes if scope.startswith(_ONE_SERVICE)}
        return frozenset(name for name in named if self.allows(_ONE_SERVICE + name, now))


@frozen
class TokenPolicy:
    """Whether the API over TCP and the gateway ask for tokens.

    The first token for one of them switches it on. Deleting tokens, or their expiry, switches nothing off.
    """

    api: bool = False
    gateway: bool = False

    def with_token(self, new: Token, others: Collection[Token]) -> TokenPolicy:
        """The policy once `new` is there beside `others`, of which logins to the console do not count."""
        others = [other for other in others if not other.is_login]
        return TokenPolicy(
            api=self.api or not others,
            gateway=self.gateway or (new.connects and not any(other.connects for other in others)),
        )

    def closed(self, tokens: Collection[Token], now: datetime) -> tuple[str, ...]:
        """A sentence for each door that asks for a token while none of `tokens` opens it."""
        sentences = []
        if self.gateway and all(token.connects_to(now) == frozenset() for token in tokens):
            sentences.append(
                "no token is left that can connect; the gateway refuses every client: "
                "`agentmgr tokens create NAME --scope connect`"
            )
        if self.api and all(token.expired(now) for token in tokens):
            sentences.append(
                "no token is left for the API; it refuses every request over TCP: "
                "`agentmgr tokens create NAME --scope admin`"
            )
        return tuple(sentences)

    def __str__(self) -> str:
        return f"API {_asks(self.api)}, gateway {_asks(self.gateway)}"


def _asks(required: bool) -> str:
    return "asks for a token" if required else "asks for none"


@frozen
class Ticket:
    """A key to the gateway that is good for one connection, soon."""

    ticket: str = field(repr=False)  #: for `?ticket=`; it is shown this once
    expires_at: datetime
