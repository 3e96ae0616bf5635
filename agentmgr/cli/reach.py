"""Which manager a command asks: one that runs, one that it starts, or none but the database.

One rule decides: who holds the database's lock is the manager, and it answers on the control socket. A
command never writes to a database that a manager holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ..errors import ManagerAlreadyRunning, ManagerNotRunning
from .background import start_daemon
from .group import Cli
from .out import note
from .presence import RETRY_S, answers, answers_at_once, silent, unreachable

if TYPE_CHECKING:
    from ..client.api import ManagerClient
    from ..manager import AgentManager
    from .offline import OfflineManager

PATIENCE_S = 20.0
"""How long a command waits for a process that holds the database and does not answer: a manager on its way up
or down, or another command that writes."""


@asynccontextmanager
async def for_reading(cli: Cli) -> AsyncIterator[ManagerClient | OfflineManager]:
    """The manager, or what the database says where none runs."""
    unanswered = await silent(cli.paths)
    if not unanswered and await answers_at_once(cli.paths):
        async with running(cli) as client:
            yield client
    else:
        from .offline import offline

        async with offline(cli.paths) as manager:
            for stranger in manager.strangers:
                note(f"this database is a copy: it records {stranger} and is left alone")
            if count := manager.unsupervised:
                if unanswered:
                    raise unreachable(cli.paths)
                what = "1 instance runs" if count == 1 else f"{count} instances run"
                note(f"no manager is running; {what} unsupervised, and `agentmgr daemon` adopts them")
            yield manager


@asynccontextmanager
async def for_writing(cli: Cli, *, adopting: bool = False) -> AsyncIterator[ManagerClient | AgentManager]:
    """The manager, or the database where none runs.

    `adopting`: the command may change what runs. If instances still run without a manager, it starts one,
    which adopts them.
    """
    async with AsyncExitStack() as stack:
        manager: ManagerClient | AgentManager
        if adopting and not await answers(cli.paths) and await _leftovers(cli):
            stack.enter_context(await start_daemon(cli))
        if (local := await _enter_unless_one_answers(cli, stack)) is not None:
            manager = local
        else:
            manager = await stack.enter_async_context(running(cli))
        yield manager


async def _enter_unless_one_answers(cli: Cli, stack: AsyncExitStack) -> AgentManager | None:
    give_up_at = trio.current_time() + PATIENCE_S
    while not await answers(cli.paths):
        from ..manager import AgentManager

        local = AgentManager(cli.paths.database, settings=cli.settings(), supervise=False)
        try:
            return await stack.enter_async_context(local)
        except ManagerAlreadyRunning:
            # Another command that writes, or a manager on its way up or down: either is over in a moment.
            if trio.current_time() > give_up_at:
                raise
        await trio.sleep(RETRY_S)
    return None


@asynccontextmanager
async def for_running(cli: Cli, services: Iterable[str] = ()) -> AsyncIterator[ManagerClient]:
    """The manager; a daemon is started in the background where none runs.

    Before it starts one it checks that all `services` are registered. Raises `ServiceNotFound`.
    """
    with ExitStack() as turn:
        if not await answers(cli.paths):
            await _check_registered(cli, services)
            turn.enter_context(await start_daemon(cli))
        async with running(cli) as client:
            yield client


@asynccontextmanager
async def running(cli: Cli) -> AsyncIterator[ManagerClient]:
    """The manager that runs. Raises `ManagerNotRunning`."""
    if await silent(cli.paths):
        raise unreachable(cli.paths)
    if not await answers_at_once(cli.paths):
        raise ManagerNotRunning(
            f"no manager is running on {cli.paths.database}; `agentmgr daemon` runs one, "
            "and `agentmgr start NAME` starts one in the background"
        )
    from ..client.api import ManagerClient

    async with ManagerClient(cli.paths.control_socket) as client:
        yield client


async def _check_registered(cli: Cli, services: Iterable[str]) -> None:
    from .offline import offline

    async with offline(cli.paths) as manager:
        for service in services:
            await manager.get_service(service)


async def _leftovers(cli: Cli) -> bool:
    from .offline import offline

    async with offline(cli.paths) as manager:
        return manager.unsupervised > 0
