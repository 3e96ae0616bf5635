"""Who may use the gateway: whoever holds a token for it, once there is one."""

from __future__ import annotations

import trio

from ..models import utc_now
from ..proxy import Identity
from .tokens import Tokens

_ONE_SERVICE = "connect:"


class GatewayAccess:
    """The gateway's `Authenticator`, over the tokens of one database.

    It is open to all who reach it until there is a token with a `connect` scope: on a developer's own machine
    nobody should need one.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @property
    def required(self) -> bool:
        return any(scope.startswith("connect") for token in self._tokens.all() for scope in token.scopes)

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        found = self._tokens.find(token)
        if found is None:
            return None
        if found.allows("connect", utc_now()):
            return Identity(found.name)
        named = {scope.removeprefix(_ONE_SERVICE) for scope in found.scopes if _ONE_SERVICE in scope}
        open_now = frozenset(name for name in named if found.allows(_ONE_SERVICE + name, utc_now()))
        return Identity(found.name, open_now) if open_now else None

    async def ticket(self, ticket: str) -> Identity | None:
        """Nobody's: none are given out yet."""
        await trio.lowlevel.checkpoint()
        return None
