"""Tickets: keys to the gateway that are good for one connection."""

from __future__ import annotations

from attrs import field, frozen

from ...manager.gateway_access import LONGEST_LIFE_S, TICKET_LIFE_S
from ...models import Ticket, utc_now
from ...models.fields import up_to
from ..operations import Answer, Call, Operations
from ..problems import HttpProblem

api = Operations("tokens")


@frozen(kw_only=True)
class NewTicket:
    service: str | None = None  #: the only service that it opens
    expires_in_s: float = field(default=TICKET_LIFE_S, validator=up_to(LONGEST_LIFE_S))


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
        raise HttpProblem(403, "forbidden", f"This token does not allow connecting to {body.service!r}.")
    ticket = call.manager.issue_ticket(call.token, body.service, expires_in_s=body.expires_in_s)
    return Answer(ticket, 201)
