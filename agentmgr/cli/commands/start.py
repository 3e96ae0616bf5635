"""`agentmgr start`"""

from __future__ import annotations

import asyncclick as click

from ...errors import ServiceFailedToStart
from ..environment import hand_over, mention_stale
from ..group import Cli, subcommand
from ..managers import for_running
from ..options import env_from_shell
from ..out import say
from ..render import standing
from ..selection import all_of, selected, selection_options
from ..watch import progress, waits


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

        code = await all_of(cli, chosen, "started", start)
        await mention_stale(cli, manager, chosen)
        return code
