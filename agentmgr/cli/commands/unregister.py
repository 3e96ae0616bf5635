"""`agentmgr unregister`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, each, subcommand
from ..managers import for_writing
from ..names import SERVICE
from ..out import say
from ..watch import progress


@subcommand("unregister", example="agentmgr unregister my-echo-agent")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE)
@click.option(
    "--force", is_flag=True, help="Erase its sessions too, and cut connections instead of draining them."
)
async def command(cli: Cli, names: tuple[str, ...], force: bool) -> int:
    """Stop a service, and forget it with its history. One with sessions that are kept needs --force."""
    async with for_writing(cli, adopting=True) as manager, progress(manager):

        async def unregister(name: str) -> None:
            service = await manager.unregister_service(name, force=force)
            say(f"unregistered {service.name}")

        return await each(cli, names, unregister)
