"""The HTTP view of an `AgentManager`: on a TCP port for everybody, on a unix socket for its user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from ..manager import AgentManager

__all__ = ["api_app", "serve_api", "serve_control"]

# The modules below import Quart, which takes a third of a second; whoever only asks never needs it.


def api_app(
    manager: AgentManager, nursery: trio.Nursery, *, stopping: trio.Event | None = None
) -> ASGIFramework:
    """The API as an ASGI application, to be mounted in one of your own that serves it on trio.

    Its paths begin with `/api/v1/`, besides `/health`, `/docs` and `/openapi.json`. `nursery` owns work that
    outlives a request; event streams end when `stopping` is set. It answers whoever asks from this machine
    and is no page of another origin, so whatever lets others reach it has to judge who they are.
    """
    from .app import make_app
    from .guard import Guard
    from .operations import Server

    stopping = trio.Event() if stopping is None else stopping
    return make_app(Server(manager, nursery, stopping), guard=Guard())


async def serve_api(
    manager: AgentManager,
    *,
    host: str = "localhost",
    port: int = 8080,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the REST API until cancelled; started with the port, which is a free one for port 0.

    Raises `PortNotAvailable`, and `InvalidRequest` for a host that is not this machine's loopback.
    """
    from ..errors import InvalidRequest
    from ..manager.listeners import open_listeners
    from .guard import Guard, is_loopback

    if not is_loopback(host):
        raise InvalidRequest(
            f"host {host!r} can be reached by others, and whoever reaches this API can run programs here; "
            "use localhost"
        )
    from .app import make_app
    from .operations import Server
    from .server import serve

    def app(nursery: trio.Nursery, stopping: trio.Event) -> ASGIFramework:
        return make_app(Server(manager, nursery, stopping), guard=Guard())

    listeners = await open_listeners(host, port)
    port = listeners[0].socket.getsockname()[1]
    with manager.listening("api", host, port):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners)
            task_status.started(port)


async def serve_control(
    manager: AgentManager,
    path: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the API, and what only the user may ask, on the unix socket `path`, until cancelled."""
    from .app import make_app
    from .control_socket import control_listener
    from .operations import Server
    from .server import serve

    def app(nursery: trio.Nursery, stopping: trio.Event) -> ASGIFramework:
        return make_app(Server(manager, nursery, stopping, control=True))

    with control_listener(path) as listener:
        await serve(app, [listener], task_status=task_status)
