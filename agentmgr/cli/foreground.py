"""Being the manager of a database, in this process, until told to stop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import Factory, frozen

from ..api import serve_control
from ..descriptors import raise_limit
from ..manager import AgentManager
from ..settings import Settings
from .group import Cli
from .out import note

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@asynccontextmanager
async def managing(
    cli: Cli, settings: Settings, told: Told, *, in_background: bool = False
) -> AsyncIterator[tuple[AgentManager, trio.Nursery]]:
    """A manager that supervises, and answers on its control socket to the very end.

    The nursery is for its listeners: it lasts until services have ended, so that sessions can end before.

    When it is told to end for the second time, sessions are waited for no longer; for the third, nothing is.

    Raises `ManagerAlreadyRunning` where another one does.
    """
    raise_limit()
    async with trio.open_nursery() as nursery:
        here = AgentManager(cli.paths.database, settings=settings, in_background=in_background)
        async with here as manager:
            await nursery.start(serve_control, manager, cli.paths.control_socket)
            nursery.start_soon(_hurry_when_told_again, manager, told)
            yield manager, nursery
        nursery.cancel_scope.cancel()


async def _hurry_when_told_again(manager: AgentManager, told: Told) -> None:
    await told.once.wait()
    note("stopping; sessions may end first, and a second Ctrl-C cuts them short")
    await told.twice.wait()
    note("stopping without sessions; a third Ctrl-C kills what takes its time")
    manager.hurry()
    await told.thrice.wait()
    manager.hurry(kill=True)


@frozen
class Told:
    """To end, by Ctrl-C, SIGTERM or a closed terminal."""

    once: trio.Event = Factory(trio.Event)
    twice: trio.Event = Factory(trio.Event)
    thrice: trio.Event = Factory(trio.Event)

    def again(self) -> None:
        for event in (self.once, self.twice, self.thrice):
            if not event.is_set():
                event.set()
                break


@asynccontextmanager
async def until_signalled() -> AsyncIterator[Told]:
    """Events that signals set.

    The receiver stays open while the block winds up: without it, a second signal would kill the clean-up.
    """
    told = Told()
    # What the receiver puts back at its end: a second signal must not kill the interpreter's own end either.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for _ in signals:
                        told.again()

                nursery.start_soon(listen)
                yield told
                nursery.cancel_scope.cancel()
    finally:
        if not told.once.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


async def run_until_told(manager: AgentManager, told: Told) -> None:
    """Returns when a signal or `agentmgr shutdown` asks for the end."""
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            await told.once.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await manager.wait_shutdown_requested()
        nursery.cancel_scope.cancel()
