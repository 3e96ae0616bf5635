"""`agentmgr restart`"""

from __future__ import annotations

import asyncclick as click

from ..environment import hand_over, mention_stale, update
from ..group import Cli, subcommand
from ..managers import for_running
from ..options import env_from_shell
from ..out import say
from ..render import standing
from ..selection import all_of, selected, selection_options
from ..watch import progress


@subcommand("restart", example="agentmgr restart my-echo-agent")
@selection_options
@click.option("--no-rolling", is_flag=True, help="Stop it first, then start it.")
@click.option("--force", is_flag=True, help="Cut its sessions instead of letting them end.")
@env_from_shell
@click.option(
    "--update-env",
    is_flag=True,
    help="Give it what this shell has of its variables (--env, --required-env), and the keys, tokens, "
    "passwords and URLs, by their names, that the manager lacks or has with other values; kept, as by --env.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
async def command(
    cli: Cli,
    names: tuple[str, ...],
    tags: str,
    everything: bool,
    no_rolling: bool,
    force: bool,
    from_shell: tuple[str, ...],
    update_env: bool,
    no_wait: bool,
) -> int:
    """Restart a service: each new instance is ready before an old one goes; its clients are asked to come
    back, and those that the agent keeps in memory begin anew. A turn that goes on for longer than
    `--drain-timeout` is interrupted.

    A service that is named is started also if it was stopped or has completed; a pattern, --tags and --all
    leave such a one alone, and one that waits for its next run.
    """
    chosen = await selected(cli, names, tags, everything, only_wanted=True)
    async with for_running(cli, chosen) as manager, progress(manager):

        async def restart(name: str) -> None:
            if update_env:
                await update(cli, manager, name)
            await hand_over(manager, name, from_shell)
            service = await manager.restart_service(
                name, rolling=not no_rolling, force=force, wait=not no_wait
            )
            say(f"{service.name} ", standing(service, just_requested=no_wait))

        code = await all_of(cli, chosen, "restarted", restart)
        await mention_stale(cli, manager, chosen)
        return code
