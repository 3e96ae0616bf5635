"""Live sessions through the gateway."""

from __future__ import annotations

from typing import Any

import trio
from attrs import Attribute, field, frozen

from ...models import Connection
from ...models.fields import invalid, rule
from ...protocol import POLICY
from ...websocket.frames import SENDABLE
from ..operations import Answer, Call, Operations
from ..queries import Page, PageQuery, page

api = Operations("connections")


@frozen(kw_only=True)
class ConnectionsQuery(PageQuery):
    service: str | None = None  #: name or id


@rule(anyOf=[{"enum": sorted(code for code in SENDABLE if code < 3000)}, {"minimum": 3000, "maximum": 4999}])
def _close_code(_: Any, attribute: Attribute[Any], code: int) -> None:
    if code not in SENDABLE:
        raise invalid(
            attribute.name, "must be a close code that may be sent, such as 1008 or one from 3000 to 4999"
        )


@rule(maxLength=123)
def _short(_: Any, attribute: Attribute[Any], reason: str) -> None:
    if len(reason.encode()) > 123:  # RFC 6455 section 5.5: a control frame holds 125 bytes
        raise invalid(attribute.name, "must be at most 123 bytes")


@frozen
class DisconnectQuery:
    code: int = field(default=POLICY, validator=_close_code)
    reason: str = field(default="", validator=_short)


@api.add("GET", "/connections", query=ConnectionsQuery, gives={200: Page[Connection]}, problems=(400,))
async def list_connections(call: Call, query: ConnectionsQuery) -> Answer:
    """The sessions that are open now."""
    found = [
        connection
        for connection in call.manager.open_connections()
        if query.service in (None, connection.service_id, connection.service_name)
    ]
    part, now = page(found, query, key=lambda connection: connection.connection_id), trio.current_time()
    items = tuple(connection.describe(now) for connection in part.items)
    return Answer(Page(items, part.total, part.limit, part.next_cursor))


@api.add("DELETE", "/connections/{ref}", query=DisconnectQuery, gives={204: None}, problems=(400, 404))
async def disconnect(call: Call, query: DisconnectQuery) -> Answer:
    """Closes a session, with a close code and a reason that its client sees."""
    call.manager.disconnect(call.ref, code=query.code, reason=query.reason)
    return Answer(None, 204)
