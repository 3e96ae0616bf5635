"""Who may use the gateway, as a worker knows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..core.secrets import token_of
from ..models import Token, TokenPolicy, utc_now
from ..proxy import Identity


class WorkerAccess:
    """A worker's `Authenticator`: the tokens that the manager sent last hold until it sends others.

    A ticket is good for one connection, so the manager redeems it; while none answers, no ticket is
    accepted.
    """

    def __init__(self, redeem: Callable[[str], Awaitable[Identity | None]]) -> None:
        self.tokens: tuple[Token, ...] = ()
        self.policy = TokenPolicy()
        self.left_open = frozenset[str]()
        self._redeem = redeem

    @property
    def required(self) -> bool:
        return self.policy.gateway

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return Identity.of(token_of(self.tokens, token), utc_now())

    async def ticket(self, ticket: str) -> Identity | None:
        return await self._redeem(ticket)
