"""What a service's instances wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from attrs import Attribute, field, frozen
from quart import Response

from ...core import conditions
from ...errors import FieldProblem, InvalidRequest
from ...models import Service
from ...models.fields import between, invalid, rule
from ...supervisor.log_source import LogSource, Selection
from ...supervisor.log_window import LogMatches, LogWindow
from ...supervisor.tail import MAX_LINES, log_label, show
from ..operations import Answer, Call, Operations
from ..streams import Send, StreamBody, stream

api = Operations("services")

_POSITION = between(-(2**62), 2**62)


def _pattern(_: Any, attribute: Attribute[Any], text: str | None) -> None:
    if text is not None:
        conditions.pattern(text, True, attribute.name)


@frozen
class LinesQuery:
    """Which lines of a log, and how they are shown."""

    tail: int | None = field(default=None, validator=between(0, MAX_LINES))
    """So many of the last lines, of each instance: 100, or all of them with `written_since`."""
    follow: bool = False  #: and what is written from now on
    instance: int | None = field(default=None, validator=between(0, 999))  #: its slot; None: all
    written_since: datetime | None = None  #: then or later, where it is known when a line was written
    grep: str | None = field(default=None, validator=_pattern)
    """A regular expression (RE2) that each line matches somewhere."""
    timestamps: bool = False  #: each line begins with the time when it was written; `-`: not known

    def selection(self, position: int | None = None) -> Selection:
        lines = 100 if self.tail is None and self.written_since is None else self.tail
        return Selection(lines, self.written_since, self.grep, self.timestamps, position)


@frozen
class LogsQuery(LinesQuery):
    since: int | None = field(default=None, validator=_POSITION)
    """With `follow`, of one instance: the position to begin at, in place of `tail`."""


@frozen
class ManyLogsQuery(LinesQuery):
    services: frozenset[str] = frozenset()  #: by name or id; none: all


@frozen
class OneLog:
    instance: int = field(default=0, validator=between(0, 999))  #: its slot


@frozen
class WindowQuery(OneLog):
    """Of the positions one is given at most; without any, the last lines come."""

    limit: int = field(default=200, validator=between(1, 5000))
    at: int | None = field(default=None, validator=_POSITION)  #: the line that it lies in, and those after it
    after: int | None = field(default=None, validator=_POSITION)
    before: int | None = field(default=None, validator=_POSITION)


@rule(minLength=1, maxLength=1000)
def _wanted(_: Any, attribute: Attribute[Any], text: str) -> None:
    if not 1 <= len(text) <= 1000 or "\n" in text:
        raise invalid(attribute.name, "must be 1 to 1000 characters on one line")


@frozen
class SearchQuery(OneLog):
    q: str = field(kw_only=True, validator=_wanted)  #: plain text, in any case
    limit: int = field(default=200, validator=between(1, 1000))
    before: int | None = field(default=None, validator=_POSITION)


@api.add(
    "GET",
    "/services/{ref}/logs",
    query=LogsQuery,
    gives={200: str},
    media_type="text/plain",
    problems=(400, 404),
    streams=True,
)
async def read_logs(call: Call, query: LogsQuery) -> Response:
    """The output of a service; each line begins with the instance's number where there are several."""
    count = call.manager.get_service(call.ref).config.instance_range.most
    if query.since is not None and (not query.follow or (query.instance is None and count > 1)):
        raise invalid("since", "is a position in the log of one instance: give `instance`, and follow=true")
    slots = range(count) if query.instance is None else [query.instance]
    return _shown(call, {str(slot): _log(call, call.ref, slot) for slot in slots}, query, query.since)


@api.add(
    "GET",
    "/logs",
    query=ManyLogsQuery,
    gives={200: str},
    media_type="text/plain",
    problems=(400, 404),
    streams=True,
)
async def read_many_logs(call: Call, query: ManyLogsQuery) -> Response:
    """The output of several services, in the order of time.

    Each line begins with the name of its service, and the instance's number where there are several.
    """
    known = call.manager.list_services()
    chosen = [call.manager.get_service(ref) for ref in sorted(query.services)] if query.services else known
    return _shown(call, dict(_logs(call, chosen, query.instance)), query)


def _logs(call: Call, services: Iterable[Service], only: int | None) -> Iterator[tuple[str, LogSource]]:
    for service in services:
        count = service.config.instance_range.most
        for slot in range(count) if only is None else range(only, min(only + 1, count)):
            yield log_label(service.name, slot, count), call.manager.open_log(service.service_id, slot)


def _shown(
    call: Call, sources: Mapping[str, LogSource], query: LinesQuery, position: int | None = None
) -> Response:
    wanted = query.selection(position)

    async def produce(send: Send) -> None:
        await show(sources, send, wanted, following=query.follow)

    return stream(StreamBody(produce, call), "text/plain; charset=utf-8")


@api.add(
    "GET", "/services/{ref}/logs/lines", query=WindowQuery, gives={200: LogWindow}, problems=(400, 404, 409)
)
async def read_log_window(call: Call, query: WindowQuery) -> Answer:
    """Lines of one instance's log around a position, which is an offset in bytes over all kept files.

    What it writes to stdout and to stderr is one log.
    """
    given = {name: getattr(query, name) for name in ("at", "after", "before")}
    if sum(position is not None for position in given.values()) > 1:
        raise invalid("at", "is given with another position: give one of `at`, `after` and `before`")
    return Answer(await _log(call, call.ref, query.instance).window(query.limit, **given))


@api.add(
    "GET",
    "/services/{ref}/logs/matches",
    query=SearchQuery,
    gives={200: LogMatches},
    problems=(400, 404, 409),
)
async def search_log(call: Call, query: SearchQuery) -> Answer:
    """The lines of one instance's log that have a text in them, the newest first."""
    source = _log(call, call.ref, query.instance)
    return Answer(await source.search(query.q, query.limit, before=query.before))


@api.add(
    "GET",
    "/services/{ref}/logs/file",
    query=OneLog,
    gives={200: str},
    media_type="text/plain",
    problems=(400, 404, 409),
    streams=True,
)
async def download_log(call: Call, query: OneLog) -> Response:
    """All that is kept of one instance's log, with the rotated files."""
    source = _log(call, call.ref, query.instance)
    begin, end = await source.extent()

    async def produce(send: Send) -> None:
        position = begin
        while position < end:
            if not (
                data := await source.read(position, min(end, position + 2**18))
            ):  # it was rotated away meanwhile
                return
            await send(data)
            position += len(data)

    response = stream(StreamBody(produce, call), "text/plain; charset=utf-8")
    name = f"{call.manager.get_service(call.ref).name}-{query.instance}.log"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _log(call: Call, ref: str, slot: int) -> LogSource:
    count = call.manager.get_service(ref).config.instance_range.most
    if slot >= count:
        problem = f"must be from 0 to {count - 1}"
        raise InvalidRequest(f"instance {problem}", fields=[FieldProblem("instance", problem)])
    return call.manager.open_log(ref, slot)
