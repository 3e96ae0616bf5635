"""What happens meanwhile: something shown again whenever it changes, and why a command still waits."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from ..core.dependencies import Dependency
from ..errors import AgentManagerError, ManagerNotRunning
from ..models import SERVING, Event, ServiceStatus
from .group import Cli
from .manager_interface import ManagerInterface, ReadsManager, ReadsServices
from .managers import for_reading
from .out import clear_screen, flush, note
from .render import counted

if TYPE_CHECKING:
    from ..client.api import ManagerClient

_SETTLE_S = 0.2  #: changes often come several at once
_REFRESH_S = 2.0  #: for what changes without an event, such as a time


async def shown(cli: Cli, show: Callable[[ReadsManager], Awaitable[None]], *, watching: bool) -> None:
    """Calls `show` now; with `watching` also after each change, until Ctrl-C."""
    if not watching:
        async with for_reading(cli) as manager:
            await show(manager)
    while watching:
        clear_screen()
        with suppress(ManagerNotRunning):  # it has just ended, which is a change
            async with for_reading(cli) as manager:
                await show(manager)
                flush()
                with trio.move_on_after(_REFRESH_S):
                    await _change(manager)
        await trio.sleep(_SETTLE_S)


async def _change(manager: ReadsManager) -> None:
    """Returns when something has happened; never without a manager."""
    if (client := _client(manager)) is None:
        await trio.sleep_forever()
    async with client.events() as events:
        await anext(events, None)


@asynccontextmanager
async def progress(manager: ManagerInterface) -> AsyncIterator[None]:
    """Says on a terminal what happens to the services while the block waits for it.

    Nothing where no manager runs, for then nothing takes long.
    """
    if not sys.stderr.isatty() or (client := _client(manager)) is None:
        yield
        return
    async with trio.open_nursery() as nursery:
        with suppress(AgentManagerError):  # it is on its way out: what that means for the block, it will say
            await nursery.start(_say_what_happens, client)
        yield
        nursery.cancel_scope.cancel()


def _client(manager: ReadsServices) -> ManagerClient | None:
    from ..client.api import ManagerClient  # not before it is needed: it brings h11

    return manager if isinstance(manager, ManagerClient) else None


async def _say_what_happens(client: ManagerClient, *, task_status: trio.TaskStatus[None]) -> None:
    async with client.events() as events:
        names = {service.service_id: service.name for service in await client.list_services()}
        task_status.started()
        with suppress(AgentManagerError):  # the manager has ended
            async for event in events:
                if event.service_id is not None and event.service_id not in names:  # it was just registered
                    names |= {service.service_id: service.name for service in await client.list_services()}
                name = names.get(event.service_id or "", "a service")  # gone already
                if line := _in_words(event, name):
                    note(line + (await _sessions_left(client, name) if name in names.values() else ""))


def _in_words(event: Event, name: str) -> str | None:
    kind, _, what = event.kind.partition(".")
    if event.kind == "session.closed":
        return f"  {name}: a session has ended"
    if kind != "instance":
        return None
    if what == "health":
        what = str(event.detail["health"])
    return f"  {name}, instance {event.detail.get('slot')}: {what}"


async def _sessions_left(client: ManagerClient, name: str) -> str:
    active = (await client.get_service(name)).active_sessions
    return f" ({counted(active, 'session')} open)" if active else ""


async def waits(manager: ReadsServices, name: str) -> str | None:
    """Which services it starts `--after` are not there, in words that follow its name; None where all are."""
    service = await manager.get_service(name)
    others = await manager.list_services()
    completed = {other.name for other in others if other.status is ServiceStatus.COMPLETED}
    serving = {other.name for other in others if other.status in SERVING} | completed
    words = map(Dependency.parse, service.config.after)
    needed = [word.name for word in words if word.name not in (completed if word.completed else serving)]
    if not needed:
        return None
    if unknown := [other for other in needed if all(other != known.name for known in others)]:
        names = " and ".join(unknown)
        return f"waits for {names}, which is no registered service; `agentmgr change` corrects --after"
    return f"waits for {' and '.join(needed)}; `agentmgr start {' '.join(needed)}` lets it begin"
