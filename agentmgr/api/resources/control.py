"""What only the user who runs the manager may ask, over its own socket."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import trio
from attrs import field, frozen
from quart import Response

from ...codec import to_plain
from ...errors import AgentManagerError, InvalidRequest, leaves
from ...models import Ticket, Token
from ...models.fields import as_in, between, check_text
from ...proxy.certificate import Certificate
from ..operations import Answer, Call, Operations
from ..streams import Send, StreamBody, stream

api = Operations("control", control_only=True)


@frozen
class ShutdownQuery:
    leave_running: bool = False  #: the instances serve on, for the next manager


@api.add("GET", "/hooks", gives={200: dict[str, Any]})
async def get_hooks(call: Call) -> Answer:
    """The `on_failure` of each service that has one in full, for a complete export."""
    return Answer(call.manager.get_hooks())


@api.add("GET", "/environments", gives={200: dict[str, Any]})
async def get_environments(call: Call) -> Answer:
    """The variables of each service with their values, for a complete export."""
    return Answer(call.manager.get_environments())


@api.add("GET", "/digests", gives={200: dict[str, Any]})
async def get_digests(call: Call) -> Answer:
    """Digests of the files that instances were launched with, to find which have changed since."""
    return Answer(call.manager.get_digests())


@frozen(kw_only=True)
class NewConsoleTicket:
    scopes: frozenset[str] = as_in(Token, "scopes")
    own_user: bool = False  #: good only for programs of the manager's own user, as far as the kernel says


@api.add(
    "POST",
    "/console/tickets",
    body=NewConsoleTicket,
    gives={201: Ticket},
    problems=(400, 413, 415, 429),
    example={"scopes": ["admin"]},
)
async def create_console_ticket(call: Call, body: NewConsoleTicket) -> Answer:
    """Makes a ticket: it logs one browser in to the console, with these scopes."""
    return Answer(call.manager.console.issue(body.scopes, own_user=body.own_user), 201)


class ListenerKind(StrEnum):
    PROXY = "proxy"
    API = "api"


@frozen
class NewListener:
    kind: ListenerKind
    port: int = field(validator=between(0, 65535))  #: 0: a free one
    host: str = field(default="localhost", validator=check_text)
    certfile: str | None = field(default=None, validator=check_text)  #: then it speaks TLS only
    keyfile: str | None = field(default=None, validator=check_text)
    proxy_protocol: bool = False  #: of a proxy: its connections begin with that


@api.add("POST", "/shutdown", query=ShutdownQuery, gives={202: dict[str, Any]}, problems=(400,))
async def shut_down(call: Call, query: ShutdownQuery) -> Answer:
    """Ends the manager; the answer comes before the end does."""
    info = call.manager.get_info()
    call.manager.request_shutdown(leave_running=query.leave_running)
    return Answer({"pid": info["pid"]}, 202)


@api.add(
    "POST",
    "/listeners",
    body=NewListener,
    gives={200: str},
    media_type="application/x-ndjson",
    problems=(400, 413, 415),
    streams=True,
    example={"kind": "proxy", "host": "localhost", "port": 9090},
)
async def open_listener(call: Call, body: NewListener) -> Response:
    """Opens a listener that lives as long as this request.

    The first line says where it listens, or in `error` why it does not. For a proxy, a line for each session
    that ends follows.
    """

    async def produce(send: Send) -> None:
        async def say(line: dict[str, Any]) -> None:
            await send(json.dumps(line, ensure_ascii=False).encode() + b"\n")

        try:
            async with trio.open_nursery() as nursery:
                port = await nursery.start(_LISTEN[body.kind], call, body)
                await say({"kind": body.kind, "host": body.host, "port": port})
                if body.kind is ListenerKind.PROXY:
                    with call.manager.subscribe() as channel:
                        async for event in channel:
                            if event.kind == "session.closed":
                                await say(to_plain(event))
        except* AgentManagerError as group:
            error = next(leaves(group))
            await say({"error": {"code": error.code, "detail": error.message}})

    return stream(StreamBody(produce, call), "application/x-ndjson")


async def _listen_proxy(call: Call, body: NewListener, task_status: trio.TaskStatus[int]) -> None:
    await call.manager.serve_proxy(
        body.host,
        body.port,
        certificate=_certificate(body),
        proxy_protocol=body.proxy_protocol,
        task_status=task_status,
    )


async def _listen_api(call: Call, body: NewListener, task_status: trio.TaskStatus[int]) -> None:
    from .. import serve_api  # it serves this very table

    await serve_api(
        call.manager,
        host=body.host,
        port=body.port,
        certificate=_certificate(body),
        task_status=task_status,
    )


def _certificate(body: NewListener) -> Certificate | None:
    if body.certfile is None:
        return None
    try:
        return Certificate(body.certfile, body.keyfile)
    except OSError as error:
        raise InvalidRequest(f"the certificate {body.certfile} cannot be used: {error}") from None


_LISTEN = {ListenerKind.PROXY: _listen_proxy, ListenerKind.API: _listen_api}
