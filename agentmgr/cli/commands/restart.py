"""`agentmgr restart`"""

from __future__ import annotations

import asyncclick as click

from ..environment import mention_stale
from ..group import Cli, each, subcommand
from ..managers import for_running
from ..names import SERVICE
from ..out import say
from ..render import standing
from ..watch import progress


@subcommand("restart", example="agentmgr restart my-echo-agent")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE)
@click.option("--no-rolling", is_flag=True, help="Stop it first, then start it.")
@click.option("--force", is_flag=True, help="Cut its sessions instead of letting them end.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
async def command(cli: Cli, names: tuple[str, ...], no_rolling: bool, force: bool, no_wait: bool) -> int:
    """Restart a service: each new instance is ready before an old one goes; its clients are asked to come
    back, and those that the agent keeps in memory begin anew."""
    async with for_running(cli, names) as manager, progress(manager):

        async def restart(name: str) -> None:
            service = await manager.restart_service(
                name, rolling=not no_rolling, force=force, wait=not no_wait
            )
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        code = await each(cli, names, restart)
        await mention_stale(cli, manager, names)
        return code
