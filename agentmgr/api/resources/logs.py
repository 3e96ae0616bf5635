"""What a service's instances wrote."""

from __future__ import annotations

from attrs import field, frozen
from quart import Response

from ...errors import FieldProblem, InvalidRequest
from ...models.fields import between
from ...supervisor.tail import MAX_LINES, show
from ..operations import Call, Operations
from ..streams import Send, StreamBody, stream

api = Operations("services")


@frozen
class LogsQuery:
    tail: int = field(
        default=100, validator=between(0, MAX_LINES)
    )  #: so many of the last lines, of each instance
    follow: bool = False  #: and what is written from now on
    instance: int | None = field(default=None, validator=between(0, 999))  #: its slot; None: all


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
    service = call.manager.get_service(call.ref)
    count = service.config.instances
    if query.instance is not None and not 0 <= query.instance < count:
        problem = f"must be from 0 to {count - 1}"
        raise InvalidRequest(f"instance {problem}", fields=[FieldProblem("instance", problem)])
    slots = range(count) if query.instance is None else [query.instance]
    files = {slot: call.manager.log_path(call.ref, slot) for slot in slots}

    async def produce(send: Send) -> None:
        await show(files, send, lines=query.tail, following=query.follow)

    return stream(StreamBody(produce, call), "text/plain; charset=utf-8")
