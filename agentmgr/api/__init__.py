"""The REST API of an `AgentManager`: on a TCP port with tokens, on a unix socket for the manager's own user.

In reading order:

    operations       what an operation is: path, what it takes and gives, its function. Handlers are plain
                     functions from a `Call` to an `Answer`
    resources        the operations, one file for each kind of thing
    app              makes routes of them; `openapi` and `schemas` make the document, of the same table
    queries          what may be in a query, as attrs classes, as `core.bodies` has it for bodies: unknown
                     names are refused
    problems         what it answers when it cannot: RFC 9457 documents, with the codes of `agentmgr.errors`
    streams          answers that go on (events, logs, listeners)
    auth, throttle   who may ask, by a token or by a login to the console, and what pages must not make a
                     browser ask; how much at once
    server           accepts, with a boundary for each connection; `connection` is HTTP/1.1 on one, `faults`
                     its log
    metrics          `GET /metrics`

Invariants:

* Routes, OpenAPI document and tests are made of one table of operations, so that none can differ.
* It decides nothing about services: handlers call `AgentManager` and translate.
* Every error has a stable `code`. One that is our fault has an id, and its traceback is in the log, never in
  the answer.
* Over TCP without tokens it serves only the user who runs the manager, and root; access to it is permission
  to run programs.
* A client that is slow, broken or hostile costs its own connection: deadlines, limits and a boundary for
  each.

Words: *operation*, a method on a path; *call*, one request to it, judged; *problem*, an error as HTTP says
it;
*control socket*, the unix socket on which the command line asks.

It must not know how instances are run or clients routed. Quart and Hypercorn are imported here alone, and
only when something is served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from ..manager import AgentManager
    from ..proxy.certificate import Certificate

__all__ = ["serve_api", "serve_control"]

log = logging.getLogger("agentmgr.api")

# The modules below import Quart, which takes a third of a second; whoever only asks never needs it.


async def serve_api(
    manager: AgentManager,
    *,
    host: str = "localhost",
    port: int = 8080,
    certificate: Certificate | None = None,
    middleware: Callable[[ASGIFramework], ASGIFramework] | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the REST API until cancelled; started with the port, which is a free one for port 0.

    With a certificate it speaks HTTPS only. `middleware` gets the API as an ASGI application and returns the
    one to serve, so that the API can be a part of yours: its paths begin with `/api/v1/`, besides `/health`,
    `/docs`, `/console/` and others of the kind. Events of ASGI's lifespan are not sent to it.

    Raises `PortNotAvailable`, and `InvalidRequest` for a host that others can reach while it asks for no
    tokens.
    """
    from ..core.hosts import is_loopback
    from ..errors import InvalidRequest
    from ..process.listening import open_listeners
    from .app import make_app
    from .auth import Access, CrossSiteGuard
    from .metrics import Metrics
    from .operations import Server
    from .server import serve
    from .throttle import Throttle

    local = is_loopback(host)
    if not local and not manager.get_token_policy().api:
        raise InvalidRequest(
            f"host {host!r} can be reached by others, and whoever reaches this API can run programs here: "
            "make a token first, with `agentmgr tokens create NAME --scope admin`, or use localhost"
        )
    if not local and certificate is None:
        log.warning("the API at %s:%d is not encrypted: tokens can be read on the way", host, port)
    metrics = Metrics(manager)

    access = Access(manager, CrossSiteGuard(), local=local)
    throttle = Throttle(manager.settings.api_rate_limit)

    def app(nursery: trio.Nursery, stopping: trio.Event) -> ASGIFramework:
        api = throttle.around(make_app(Server(manager, nursery, stopping, metrics, access=access)))
        return api if middleware is None else middleware(api)

    listeners = await open_listeners(host, port)
    port = listeners[0].socket.getsockname()[1]
    with manager.listening("api", host, port, tls=certificate is not None):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, app, listeners, certificate=certificate))
            task_status.started(port)


async def serve_control(
    manager: AgentManager,
    path: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the API, and what only the user may ask, on the unix socket `path`, until cancelled.

    Where the socket's file is deleted, another one is made; whoever is connected stays so.
    """
    from ..process.control_socket import control_listener, keep_bound
    from .app import make_app
    from .metrics import Metrics
    from .operations import Server
    from .server import serve

    metrics = Metrics(manager)

    def app(nursery: trio.Nursery, stopping: trio.Event) -> ASGIFramework:
        return make_app(Server(manager, nursery, stopping, metrics, control=True))

    with control_listener(path) as listener:
        async with trio.open_nursery() as nursery:
            again = partial(keep_bound, make_directory=manager.paths.create)
            nursery.start_soon(again, path, lambda listener: serve(app, [listener]))
            await serve(app, [listener], task_status=task_status)
