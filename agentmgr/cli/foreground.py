"""Being the manager of a database, in this process, until told to stop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from ..api import serve_control
from ..errors import AgentManagerError, ManagerAlreadyRunning
from ..manager import AgentManager
from ..settings import Settings
from .group import Cli
from .reach import PATIENCE_S, RETRY_S, answers

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@asynccontextmanager
async def managing(cli: Cli, settings: Settings) -> AsyncIterator[AgentManager]:
    """A manager that supervises, and answers on its control socket to the very end.

    Raises `ManagerAlreadyRunning` where another one does.
    """
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            manager = await _enter(cli, settings, stack)
            await nursery.start(serve_control, manager, cli.paths.control_socket)
            yield manager
        nursery.cancel_scope.cancel()


async def _enter(cli: Cli, settings: Settings, stack: AsyncExitStack) -> AgentManager:
    give_up_at = trio.current_time() + PATIENCE_S
    while True:
        try:
            return await stack.enter_async_context(AgentManager(cli.paths.database, settings=settings))
        except ManagerAlreadyRunning:
            # A command that writes is done in a moment; one that answers is there to stay.
            if await answers(cli.paths) or trio.current_time() > give_up_at:
                raise
        await trio.sleep(RETRY_S)


@asynccontextmanager
async def until_signalled() -> AsyncIterator[trio.Event]:
    """An event that is set by Ctrl-C, SIGTERM or a closed terminal.

    The receiver stays open while the block winds up: without it, a second signal would kill the clean-up.
    """
    told = trio.Event()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for _ in signals:
                    told.set()

            nursery.start_soon(listen)
            yield told
            nursery.cancel_scope.cancel()


async def wait_for_end(manager: AgentManager, told: trio.Event) -> None:
    """Returns when a signal or `agentmgr shutdown` asks for the end; a signal after that makes it quick."""
    async with trio.open_nursery() as nursery:

        async def first(wait: object) -> None:
            await wait()  # type: ignore[operator]
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, told.wait)
        nursery.start_soon(first, manager.wait_shutdown_requested)


async def stop_quickly(manager: AgentManager) -> None:
    """Cuts what still drains."""
    for service in manager.list_services():
        try:
            await manager.stop_service(service.service_id, force=True, wait=False)
        except AgentManagerError:  # it is gone already
            continue
