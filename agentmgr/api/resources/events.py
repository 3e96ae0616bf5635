"""Every change of state, as it happens."""

from __future__ import annotations

from attrs import field, frozen
from quart import Response

from ...codec import to_json
from ...errors import InvalidRequest
from ...models import Event
from ...models.fields import between
from ..operations import Call, Operations
from ..streams import Send, StreamBody, stream

api = Operations("events")

_PAGE = 1000


@frozen
class EventsQuery:
    since: int | None = field(default=None, validator=between(0, 2**63 - 1))
    """The id of the last event that is known; None: only what comes."""
    follow: bool = True  #: False: ends after what has happened so far


@api.add(
    "GET",
    "/events",
    query=EventsQuery,
    gives={200: str},
    media_type="text/event-stream",
    problems=(400,),
    streams=True,
)
async def get_events(call: Call, query: EventsQuery) -> Response:
    """Server-sent events, each with an id to resume from (`since`, or the header `Last-Event-ID`)."""
    known = since(call, query)

    async def produce(send: Send) -> None:
        await send(b": agentmgr events\n\n")
        last = known
        while True:
            # Subscribed before the past is read, so that nothing falls in between.
            with call.manager.subscribe() as channel:
                while last is not None:
                    past = await call.manager.get_events(after=last, limit=_PAGE)
                    for event in past:
                        await send(_frame(event))
                        last = event.event_id
                    if len(past) < _PAGE:
                        break
                if not query.follow:
                    return
                async for event in channel:
                    if last is None or event.event_id > last:
                        await send(_frame(event))
                        last = event.event_id
            # The channel ends when this client is too slow; the store still has what it missed.

    return stream(StreamBody(produce, call, keepalive=b": still here\n\n"), "text/event-stream")


def since(call: Call, query: EventsQuery) -> int | None:
    if query.since is not None:
        return query.since
    text = call.headers.get("Last-Event-ID")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise InvalidRequest(f"Last-Event-ID {text!r} is not an id of ours")
    return int(text)


def _frame(event: Event) -> bytes:
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {to_json(event)}\n\n".encode()
