"""Opening the gateway and the API in this process, and saying where."""

from __future__ import annotations

from functools import partial

import trio

from ..api import serve_api
from ..errors import PortNotAvailable
from ..manager import AgentManager
from ..process.listening import bind
from ..process.paths import RuntimePaths
from ..proxy.certificate import Certificate
from ..worker.pidfile import living
from .addresses import address
from .out import say


async def check_ports(
    paths: RuntimePaths, host: str, *, gateway: int | None = None, api: int | None = None
) -> None:
    """To be asked before a manager takes anything over: one that fails after that ends what ran well.

    Raises `PortNotAvailable`, `InvalidRequest`.
    """
    running = living(paths)
    # The port of workers that a former manager left is shared, or will be given up.
    left = not all(worker.guest for worker in running)
    for port, shared in ((gateway, left), (api, False)):
        if port is None:
            continue
        try:
            for sock in await bind(host, port, shared=shared):
                sock.close()
        except PortNotAvailable as error:
            guests = [f"pid {worker.pid}" for worker in running if worker.guest]
            if not guests or port != gateway:
                raise
            raise PortNotAvailable(
                f"{error.message}; the `agentmgr proxy` of a terminal ({', '.join(guests)}) serves this "
                "database already, and goes on by itself with another manager"
            ) from None


async def open_gateway(
    nursery: trio.Nursery, manager: AgentManager, host: str, port: int, certificate: Certificate | None
) -> None:
    """In a process of its own, unless the settings say otherwise: it then outlives this manager.

    Raises `PortNotAvailable`, and `ManagerError` where that process does not start.
    """
    workers = manager.settings.proxy_workers
    serve = partial(
        manager.serve_proxy, host, port, certificate=certificate, workers=1 if workers is None else workers
    )
    opened = await nursery.start(serve)
    say(address("proxy", host, opened, tls=certificate is not None), flush=True)


async def open_api(
    nursery: trio.Nursery, manager: AgentManager, host: str, port: int, certificate: Certificate | None
) -> None:
    """Raises `PortNotAvailable`."""
    opened = await nursery.start(partial(serve_api, manager, host=host, port=port, certificate=certificate))
    say(address("api", host, opened, tls=certificate is not None), flush=True)
