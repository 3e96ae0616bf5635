"""Who may use the gateway, where it asks for tokens: clients with a token, or with a ticket.

A ticket is a key for one connection, for browsers: they cannot send headers, and a query stays in histories.
"""

from __future__ import annotations

from datetime import timedelta

import trio
from attrs import evolve, frozen

from ..errors import InvalidRequest
from ..models import Ticket, Token, utc_now
from ..proxy import Identity
from .tickets import Tickets
from .tokens import Tokens

TICKET_LIFE_S = 30.0  #: from a page's request for one to its connection takes a moment
LONGEST_LIFE_S = 300.0
_LOCAL = "local"  #: the name of clients whose ticket was made without a token


class GatewayAccess:
    """Decides who may use the gateway, by the tokens of one database; it is the gateway's `Authenticator`.

    It is open to all who reach it until a token with a `connect` scope is made: on a developer's own machine
    no client should need one. From then on it asks, until the policy is switched off by name.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._tickets = Tickets[Claim]()

    @property
    def required(self) -> bool:
        return self.tokens.policy.gateway

    async def bearer(self, token: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        return Identity.of(self.tokens.find(token), utc_now())

    async def ticket(self, ticket: str) -> Identity | None:
        await trio.lowlevel.checkpoint()
        claim = self._tickets.redeem(ticket, trio.current_time())
        if claim is None:
            return None
        if claim.token_id is None:
            identity: Identity | None = Identity(_LOCAL)
        else:  # it may have been revoked since
            identity = Identity.of(self.tokens.get(claim.token_id), utc_now())
        if identity is None or claim.service is None:
            return identity
        if identity.services is not None and claim.service not in identity.services:
            return None
        return evolve(identity, services=frozenset({claim.service}))

    def issue(self, token: Token | None, service: str | None, life_s: float) -> Ticket:
        """A ticket for what `token` opens, or for all where there is none.

        Raises `InvalidRequest` for a life that is too long, `TooManyTickets`.
        """
        if not 0 < life_s <= LONGEST_LIFE_S:
            raise InvalidRequest(f"expires_in_s must be more than 0 and at most {LONGEST_LIFE_S:g}")
        now = trio.current_time()
        claim = Claim(token.token_id if token else None, service, now + life_s)
        return Ticket(self._tickets.issue(claim, now), utc_now() + timedelta(seconds=life_s))


@frozen
class Claim:
    """What a ticket stands for. Whether its token still opens that is asked when it is used."""

    token_id: str | None  #: None: it was made without a token, by the user who runs the manager
    service: str | None  #: the only service that it opens; None: whatever its token opens
    expires_at: float  #: on the clock of trio
