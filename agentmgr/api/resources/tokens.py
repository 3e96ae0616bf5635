"""Tokens: keys to this API and to the gateway. Tickets: keys to the gateway, good for one connection."""

from __future__ import annotations

from datetime import datetime

import trio
from attrs import field, frozen

from ...manager.gateway_access import LONGEST_LIFE_S, TICKET_LIFE_S
from ...manager.tokens import MOST_DAYS
from ...models import Ticket, Token, TokenPolicy, utc_now
from ...models.fields import as_in, up_to
from ...websocket.refusal import RefusalCode
from ..operations import BASE, Answer, Call, Operations
from ..problems import HttpProblem
from ..queries import Page, PageQuery, page

api = Operations("tokens", scope="admin")


@frozen
class ShownToken:
    """A token, without what it opens with."""

    token_id: str
    name: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None


@frozen
class MadeToken(ShownToken):
    key: str  #: for `Authorization: Bearer`; it is shown this once


@frozen(kw_only=True)
class NewToken:
    name: str = as_in(Token, "name")
    scopes: frozenset[str] = as_in(Token, "scopes")  #: of `admin`, `read`, `connect` and `connect:SERVICE`
    expires_in_days: float | None = field(default=None, validator=up_to(MOST_DAYS))


@frozen(kw_only=True)
class NewTokenPolicy:
    api: bool | None = None  #: absent: as it is
    gateway: bool | None = None


@frozen(kw_only=True)
class NewTicket:
    service: str | None = None  #: the only service that it opens
    expires_in_s: float = field(default=TICKET_LIFE_S, validator=up_to(LONGEST_LIFE_S))


def _shown(token: Token) -> ShownToken:
    return ShownToken(token.token_id, token.name, token.scopes, token.created_at, token.expires_at)


@api.add(
    "POST",
    "/tickets",
    body=NewTicket,
    body_required=False,
    gives={201: Ticket},
    problems=(400, 404, 413, 415, 429),
    scope="connect",
    example={"service": "my-service"},
)
async def create_ticket(call: Call, body: NewTicket | None) -> Answer:
    """Makes a ticket: it opens the gateway once, as `?ticket=`, to what the caller's token opens."""
    body = body or NewTicket()
    opens = call.token.connects_to(utc_now()) if call.token else None
    if opens is not None and body.service is not None and body.service not in opens:
        raise HttpProblem(
            403, RefusalCode.FORBIDDEN, f"This token does not allow connecting to {body.service!r}."
        )
    if "Origin" in call.headers and (call.token is None or call.token.is_login):
        # It is our own page's: another one's request would not have come here.
        await call.manager.console.visited_at(call.headers["Origin"].lower())
    ticket = call.manager.issue_ticket(call.token, body.service, expires_in_s=body.expires_in_s)
    return Answer(ticket, 201)


@api.add("GET", "/token-policy", gives={200: TokenPolicy})
async def get_token_policy(call: Call) -> Answer:
    """Whether the API over TCP and the gateway ask for tokens."""
    return Answer(call.manager.get_token_policy())


@api.add(
    "PATCH",
    "/token-policy",
    body=NewTokenPolicy,
    gives={200: TokenPolicy},
    problems=(400, 413, 415),
    example={"gateway": True},
)
async def require_tokens(call: Call, body: NewTokenPolicy) -> Answer:
    """Has them ask for tokens, or no longer. The first token switches it on; only this switches it off."""
    return Answer(
        await call.carry_out(lambda: call.manager.require_tokens(api=body.api, gateway=body.gateway))
    )


@api.add("GET", "/tokens", query=PageQuery, gives={200: Page[ShownToken]}, problems=(400,))
async def list_tokens(call: Call, query: PageQuery) -> Answer:
    """The tokens that there are; never their keys."""
    tokens = [_shown(token) for token in call.manager.list_tokens()]
    return Answer(page(tokens, query, key=lambda token: token.name))


@api.add(
    "POST",
    "/tokens",
    body=NewToken,
    gives={201: MadeToken},
    problems=(400, 409, 413, 415),
    example={"name": "dashboard", "scopes": ["read"], "expires_in_days": 90},
)
async def create_token(call: Call, body: NewToken) -> Answer:
    """Makes a token. Its key is in this answer, and nowhere else."""
    token, key = await call.carry_out(
        lambda: call.manager.create_token(body.name, body.scopes, expires_in_days=body.expires_in_days)
    )
    made = MadeToken(token.token_id, token.name, token.scopes, token.created_at, token.expires_at, key)
    return Answer(made, 201, {"Location": f"{BASE}/tokens/{token.token_id}"})


@frozen
class RevokeQuery:
    leave_open: bool = False  #: what it has opened goes on


@api.add("DELETE", "/tokens/{ref}", query=RevokeQuery, gives={204: None}, problems=(400, 404))
async def delete_token(call: Call, query: RevokeQuery) -> Answer:
    """Revokes a token, at once, and ends what it has opened: sessions (1008), streams, waiting requests."""
    with trio.CancelScope(shield=True):  # it may be the very token of this request
        await call.carry_out(lambda: call.manager.delete_token(call.ref, leave_open=query.leave_open))
    return Answer(None, 204)
