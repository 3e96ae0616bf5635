"""`agentmgr stop`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, each, subcommand
from ..managers import for_writing
from ..names import SERVICE
from ..out import say
from ..render import standing
from ..watch import progress


@subcommand("stop", example="agentmgr stop my-echo-agent")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE)
@click.option("--force", is_flag=True, help="Cut its sessions instead of letting them end.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has stopped.")
async def command(cli: Cli, names: tuple[str, ...], force: bool, no_wait: bool) -> int:
    """Stop a service, and keep it stopped."""
    async with for_writing(cli, adopting=True) as manager, progress(manager):

        async def stop(name: str) -> None:
            service = await manager.stop_service(name, force=force, wait=not no_wait)
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        return await each(cli, names, stop)
