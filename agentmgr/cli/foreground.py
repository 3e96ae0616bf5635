"""Runs the manager of a database in this process, until a signal or `agentmgr shutdown` ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..api import serve_control
from ..manager import AgentManager
from ..process.descriptors import raise_limit
from ..settings import Settings
from .group import Cli
from .out import note
from .signals import StopSignals


@asynccontextmanager
async def managing(
    cli: Cli, settings: Settings, signals: StopSignals, *, in_background: bool = False
) -> AsyncIterator[tuple[AgentManager, trio.Nursery]]:
    """A manager that supervises, and answers on its control socket to the very end.

    The nursery is for its listeners: it lasts until services have ended, so that sessions can end before.

    At the second stop signal it stops waiting for sessions; at the third it kills what still runs.

    Raises `ManagerAlreadyRunning` where another one does.
    """
    raise_limit()
    async with trio.open_nursery() as nursery:
        here = AgentManager(cli.paths.database, settings=settings, in_background=in_background)
        async with here as manager:
            await nursery.start(serve_control, manager, cli.paths.control_socket)
            nursery.start_soon(_hurry_at_further_signals, manager, signals)
            yield manager, nursery
        nursery.cancel_scope.cancel()


async def _hurry_at_further_signals(manager: AgentManager, signals: StopSignals) -> None:
    await signals.first.wait()
    note("stopping; sessions may end first, and a second Ctrl-C cuts them short")
    await signals.second.wait()
    note("stopping without waiting for sessions; a third Ctrl-C kills what still runs")
    manager.hurry()
    await signals.third.wait()
    manager.hurry(kill=True)


async def run_until_stopped(manager: AgentManager, signals: StopSignals) -> None:
    """Returns when a signal or `agentmgr shutdown` asks for the end."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await signals.first.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await manager.wait_shutdown_requested()
        nursery.cancel_scope.cancel()
