"""`agentmgr run-now`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, subcommand
from ..managers import for_running
from ..names import SERVICE
from ..out import say


@subcommand("run-now", example="agentmgr run-now nightly-report")
@click.argument("name", type=SERVICE)
async def command(cli: Cli, name: str) -> None:
    """Begin a run of a service with a schedule, besides those by its schedule."""
    async with for_running(cli, [name]) as manager:
        service = await manager.run_service_now(name)
    say(f"{service.name} runs; `agentmgr status {service.name}` says how it ends")
