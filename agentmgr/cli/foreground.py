"""Runs the manager of a database in this process, until a signal or `agentmgr shutdown` ends it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import Factory, frozen

from ..api import serve_control
from ..manager import AgentManager
from ..process.descriptors import raise_limit
from ..settings import Settings
from .group import Cli
from .out import note

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


@frozen
class StopSignals:
    """Set by the first, second and third SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal)."""

    first: trio.Event = Factory(trio.Event)
    second: trio.Event = Factory(trio.Event)
    third: trio.Event = Factory(trio.Event)

    def received(self) -> None:
        for event in (self.first, self.second, self.third):
            if not event.is_set():
                event.set()
                break


@asynccontextmanager
async def stop_signals() -> AsyncIterator[StopSignals]:
    """Receives the signals that stop this process, and reports each.

    The receiver stays open while the block winds up: without it, a second signal would kill the clean-up.
    """
    stop = StopSignals()
    # What the receiver puts back at its end: a second signal must not kill the interpreter's own end either.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for _ in received:
                        stop.received()

                nursery.start_soon(listen)
                yield stop
                nursery.cancel_scope.cancel()
    finally:
        if not stop.first.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


async def run_until_stopped(manager: AgentManager, signals: StopSignals) -> None:
    """Returns when a signal or `agentmgr shutdown` asks for the end."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await signals.first.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await manager.wait_shutdown_requested()
        nursery.cancel_scope.cancel()
