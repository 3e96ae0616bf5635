"""`agentmgr start`"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import asyncclick as click

from ...core.dependencies import Dependency
from ...errors import AgentManagerError, ServiceFailedToStart
from ..environment import hand_over, mention_stale
from ..group import Cli, subcommand
from ..managers import for_running
from ..options import env_from_shell
from ..out import say
from ..render import standing
from ..selection import all_of, selected, selection_options
from ..watch import progress, waits

if TYPE_CHECKING:
    from ...client.api import ManagerClient


@subcommand("start", example="agentmgr start my-echo-agent")
@selection_options
@env_from_shell
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
async def command(
    cli: Cli,
    names: tuple[str, ...],
    tags: str,
    everything: bool,
    from_shell: tuple[str, ...],
    no_wait: bool,
) -> int:
    """Start a service, and wait until it is ready; a manager is started in the background if none runs."""
    chosen = await selected(cli, names, tags, everything)
    async with for_running(cli, chosen) as manager, progress(manager):

        async def start(name: str) -> None:
            await hand_over(manager, name, from_shell)
            try:
                service = await manager.start_service(name, wait=not no_wait)
            except ServiceFailedToStart:
                if waiting := await waits(manager, name):
                    raise ServiceFailedToStart(f"{name} {waiting}") from None
                raise
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        if len(chosen) > 1:  # so that none fails for another that would start a moment later
            for name in await _needed_first(manager, chosen):
                with suppress(AgentManagerError):  # it comes again below, and is said there
                    await manager.start_service(name, wait=False)
        code = await all_of(cli, chosen, "asked to start" if no_wait else "started", start)
        await mention_stale(cli, manager, chosen)
        return code


async def _needed_first(manager: ManagerClient, names: list[str]) -> list[str]:
    """Those of the names that are registered, each behind what it starts `--after`."""
    services = {service.name: service for service in await manager.list_services()}
    ordered: list[str] = []
    left = [name for name in names if name in services]
    while left:
        after = {name: {Dependency.parse(word).name for word in services[name].config.after} for name in left}
        ready = [name for name in left if after[name].isdisjoint(left)] or left  # or: a circle
        ordered += ready
        left = [name for name in left if name not in ready]
    return ordered
