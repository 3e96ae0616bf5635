"""Opening the gateway and the API in this process, and saying where."""

from __future__ import annotations

from functools import partial

import trio

from ..api import serve_api
from ..manager import AgentManager
from ..proxy.certificate import Certificate
from .addresses import address


async def open_gateway(
    nursery: trio.Nursery, manager: AgentManager, host: str, port: int, certificate: Certificate | None
) -> None:
    """Raises `PortNotAvailable`."""
    opened = await nursery.start(partial(manager.serve_proxy, host, port, certificate=certificate))
    print(address("proxy", host, opened, tls=certificate is not None), flush=True)


async def open_api(
    nursery: trio.Nursery, manager: AgentManager, host: str, port: int, certificate: Certificate | None
) -> None:
    """Raises `PortNotAvailable`."""
    opened = await nursery.start(partial(serve_api, manager, host=host, port=port, certificate=certificate))
    print(address("api", host, opened, tls=certificate is not None), flush=True)
