"""Every change of state, as it happens, and figures of each second for who looks on."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import trio
from attrs import Attribute, field, frozen
from quart import Response

from ...codec import to_json
from ...errors import InvalidRequest
from ...manager.sampling import OVERVIEW, SERVICES
from ...models import Event
from ...models.fields import ID, between, invalid, rule
from ..operations import Call, Operations
from ..streams import Send, StreamBody, stream

api = Operations("events")

_PAGE = 1000


_MOST_SAMPLED = 200

_plain = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


@frozen
class EventsQuery:
    since: int | None = field(default=None, validator=between(0, 2**63 - 1))
    """The id of the last event that is known; None: only what comes."""
    follow: bool = True  #: False: ends after what has happened so far


@rule(items={"type": "string", "pattern": rf"^({OVERVIEW}|{SERVICES}|{ID.pattern})$"}, maxItems=_MOST_SAMPLED)
def _sampled(_: Any, attribute: Attribute[Any], words: frozenset[str]) -> None:
    for word in words - {OVERVIEW, SERVICES}:
        if not ID.fullmatch(word):
            raise invalid(
                attribute.name, f"must be {OVERVIEW}, {SERVICES} or ids of services, not {word[:80]!r}"
            )
    if len(words) > _MOST_SAMPLED:
        raise invalid(attribute.name, f"must be {_MOST_SAMPLED} words at most")


@frozen
class SampledEventsQuery(EventsQuery):
    sample: frozenset[str] = field(default=frozenset(), validator=_sampled)
    """Adds figures at once, and then every second: the event `sample`, which has no id."""


@api.add(
    "GET",
    "/events",
    query=SampledEventsQuery,
    gives={200: str},
    media_type="text/event-stream",
    problems=(400,),
    streams=True,
)
async def get_events(call: Call, query: SampledEventsQuery) -> Response:
    """Server-sent events, each with an id to resume from (`since`, or the header `Last-Event-ID`).

    With `sample`, figures come along: of `overview`, the whole; of `services`, a row for each service, all at
    first and then those that have changed; of each service that is named by its id, what it does now.
    """
    known = since(call, query)

    async def produce(send: Send) -> None:
        await send(b": agentmgr events\n\n")
        async with trio.open_nursery() as nursery:
            if query.sample and query.follow:
                nursery.start_soon(sample, send)
            await pass_on(send)

    async def sample(send: Send) -> None:
        with call.manager.samples(query.sample) as viewer:
            async for figures in viewer.samples:
                await send(f"event: sample\ndata: {_plain(viewer.shown(figures))}\n\n".encode())

    async def pass_on(send: Send) -> None:
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
