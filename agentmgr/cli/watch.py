"""Showing something again whenever it changes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from ..errors import AgentManagerError, ManagerNotRunning
from .group import Cli
from .out import clear_screen, flush, note
from .presence import answers
from .reach import running
from .render import counted

if TYPE_CHECKING:
    from ..client.api import ManagerClient
    from ..models import Event

_SETTLE_S = 0.2  #: changes often come several at once
_REFRESH_S = 2.0  #: for what changes without an event, such as a time


async def watch(cli: Cli, show: Callable[[], Awaitable[None]]) -> None:
    """Calls `show` now and after each change, until Ctrl-C."""
    while True:
        clear_screen()
        with suppress(ManagerNotRunning):  # it has just ended: the database is shown in a moment
            await show()
        flush()
        with trio.move_on_after(_REFRESH_S):
            await _change(cli)
            await trio.sleep(_SETTLE_S)


async def _change(cli: Cli) -> None:
    """Returns when something has happened; never without a manager."""
    if not await answers(cli.paths):
        await trio.sleep_forever()
    try:
        async with running(cli) as client, client.events() as events:
            await anext(events, None)
    except ManagerNotRunning:  # it has just ended, which is a change
        return


@asynccontextmanager
async def progress(cli: Cli) -> AsyncIterator[None]:
    """Says on a terminal what happens to the services while the block waits for it.

    Nothing where no manager runs, for then nothing takes long.
    """
    if not sys.stderr.isatty() or not await answers(cli.paths):
        yield
        return
    async with trio.open_nursery() as nursery:
        with suppress(AgentManagerError):  # it is on its way out: what that means for the block, it will say
            await nursery.start(_say_what_happens, cli)
        yield
        nursery.cancel_scope.cancel()


async def _say_what_happens(cli: Cli, *, task_status: trio.TaskStatus[None]) -> None:
    async with running(cli) as client, client.events() as events:
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
