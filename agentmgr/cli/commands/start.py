"""`agentmgr start`"""

from __future__ import annotations

import asyncclick as click

from ...errors import ServiceFailedToStart
from ..environment import mention_stale
from ..group import Cli, each, subcommand
from ..managers import for_running
from ..names import SERVICE
from ..out import say
from ..render import standing
from ..watch import progress, waits


@subcommand("start", example="agentmgr start my-echo-agent")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE)
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
async def command(cli: Cli, names: tuple[str, ...], no_wait: bool) -> int:
    """Start a service, and wait until it is ready; a manager is started in the background if none runs."""
    async with for_running(cli, names) as manager, progress(manager):

        async def start(name: str) -> None:
            try:
                service = await manager.start_service(name, wait=not no_wait)
            except ServiceFailedToStart:
                if waiting := await waits(manager, name):
                    raise ServiceFailedToStart(f"{name} {waiting}") from None
                raise
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        code = await each(cli, names, start)
        await mention_stale(cli, manager, names)
        return code
