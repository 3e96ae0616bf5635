"""What services did: in each minute of the last day, and how their last instances ended."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import trio
from attrs import Attribute, field, fields, frozen
from quart import Response

from ...errors import InvalidRequest
from ...models import InstanceEnd, MinuteFigures
from ...models.fields import ID, between, invalid, rule
from ..operations import Answer, Call, Operations

api = Operations("services")

_DAY = 24 * 60
_MOST_SERVICES = 200
_MOST_ROWS = 20_000  #: services times minutes: half a megabyte

_MOMENT = between(0, 2**40)


@rule(items={"type": "string", "pattern": f"^{ID.pattern}$"}, minItems=1, maxItems=_MOST_SERVICES)
def _ids(_: Any, attribute: Attribute[Any], ids: frozenset[str]) -> None:
    if not 1 <= len(ids) <= _MOST_SERVICES or not all(map(ID.fullmatch, ids)):
        raise invalid(attribute.name, f"must be 1 to {_MOST_SERVICES} ids of services")


@frozen
class ManyQuery:
    services: frozenset[str] = field(validator=_ids)
    minutes: int = field(default=60, validator=between(1, _DAY))  #: the last ones


@frozen
class OneQuery:
    since: int | None = field(default=None, validator=_MOMENT)  #: seconds since 1970; None: a day ago
    until: int | None = field(default=None, validator=_MOMENT)  #: None: now


@frozen
class EndsQuery:
    limit: int = field(default=20, validator=between(1, 50))


@frozen
class Ends:
    items: tuple[InstanceEnd, ...]  #: the newest first


@api.add("GET", "/history", query=ManyQuery, gives={200: dict[str, Any]}, problems=(400,))
async def get_histories(call: Call, query: ManyQuery) -> Response:
    """What several services did in each of the last minutes: lists as long as `minutes`, by figure.

    `minutes` has when each began, in seconds since 1970. Null: nothing was measured.
    """
    if len(query.services) * query.minutes > _MOST_ROWS:
        raise InvalidRequest(f"services times minutes must be {_MOST_ROWS} at most: ask for fewer of one")
    last = int(time.time()) // 60 - 1
    return await _histories(call, query.services, last - query.minutes + 1, last)


@api.add("GET", "/services/{ref}/history", query=OneQuery, gives={200: dict[str, Any]}, problems=(400, 404))
async def get_service_history(call: Call, query: OneQuery) -> Response:
    """The same of one service, of the last day or a part of it."""
    service_id = call.manager.get_service(call.ref).service_id
    now = int(time.time()) // 60 - 1
    last = min(now, now if query.until is None else query.until // 60)
    first = max(now - _DAY + 1, 0 if query.since is None else query.since // 60)
    return await _histories(call, frozenset({service_id}), first, last)


async def _histories(call: Call, service_ids: frozenset[str], first: int, last: int) -> Response:
    found = await call.manager.get_minutes(service_ids, first, last)
    encode = partial(_encoded, found, range(first, last + 1))
    body = await trio.to_thread.run_sync(encode)  # up to 140,000 numbers
    return Response(body, content_type="application/json", headers={"Cache-Control": "no-store"})


def _encoded(found: Mapping[str, Mapping[int, MinuteFigures]], minutes: range) -> bytes:
    names = [one.name for one in fields(MinuteFigures)]
    nothing = dict.fromkeys(names)
    services = {}
    for service_id, by_minute in found.items():
        rows = [
            attrs.asdict(row) if (row := by_minute.get(minute)) is not None else nothing for minute in minutes
        ]
        services[service_id] = {name: [row[name] for row in rows] for name in names}
    shown = {"minutes": [minute * 60 for minute in minutes], "services": services}
    return json.dumps(shown, separators=(",", ":")).encode()


@api.add("GET", "/services/{ref}/ends", query=EndsQuery, gives={200: Ends}, problems=(400, 404))
async def get_service_ends(call: Call, query: EndsQuery) -> Answer:
    """How the last instances of a service ended, each with the last lines of its output."""
    return Answer(Ends(await call.manager.get_ends(call.ref, limit=query.limit)))
