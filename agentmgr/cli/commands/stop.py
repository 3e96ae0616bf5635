"""`agentmgr stop`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, subcommand
from ..managers import for_writing
from ..out import say
from ..render import standing
from ..selection import all_of, selected, selection_options
from ..watch import progress


@subcommand("stop", example="agentmgr stop my-echo-agent")
@selection_options
@click.option("--force", is_flag=True, help="Cut its sessions instead of letting them end.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has stopped.")
async def command(
    cli: Cli, names: tuple[str, ...], tags: str, everything: bool, force: bool, no_wait: bool
) -> int:
    """Stop a service, and keep it stopped."""
    chosen = await selected(cli, names, tags, everything)
    async with for_writing(cli, adopting=True) as manager, progress(manager):

        async def stop(name: str) -> None:
            service = await manager.stop_service(name, force=force, wait=not no_wait)
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        return await all_of(cli, chosen, "stopped", stop)
