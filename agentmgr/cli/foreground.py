"""Being the manager of a database, in this process, until told to stop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..api import serve_control
from ..descriptors import raise_limit
from ..manager import AgentManager
from ..settings import Settings
from .group import Cli

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@asynccontextmanager
async def managing(
    cli: Cli, settings: Settings, *, in_background: bool = False
) -> AsyncIterator[AgentManager]:
    """A manager that supervises, and answers on its control socket to the very end.

    Raises `ManagerAlreadyRunning` where another one does.
    """
    raise_limit()
    async with trio.open_nursery() as nursery:
        here = AgentManager(cli.paths.database, settings=settings, in_background=in_background)
        async with here as manager:
            await nursery.start(serve_control, manager, cli.paths.control_socket)
            yield manager
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def until_signalled() -> AsyncIterator[trio.Event]:
    """An event that is set by Ctrl-C, SIGTERM or a closed terminal.

    The receiver stays open while the block winds up: without it, a second signal would kill the clean-up.
    """
    told = trio.Event()
    # What the receiver puts back at its end: a second signal must not kill the interpreter's own end either.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for _ in signals:
                        told.set()

                nursery.start_soon(listen)
                yield told
                nursery.cancel_scope.cancel()
    finally:
        if not told.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


async def run_until_told(manager: AgentManager, told: trio.Event) -> None:
    """Returns when a signal or `agentmgr shutdown` asks for the end."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await told.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await manager.wait_shutdown_requested()
        nursery.cancel_scope.cancel()
