"""`agentmgr scale`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, subcommand
from ..managers import for_writing
from ..names import SERVICE
from ..out import say
from ..render import counted, standing
from ..watch import progress


@subcommand("scale", example="agentmgr scale my-echo-agent 3")
@click.argument("name", type=SERVICE)
@click.argument("instances", type=click.IntRange(min=1))
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
async def command(cli: Cli, name: str, instances: int, no_wait: bool) -> None:
    """Run a service with so many instances from now on."""
    async with for_writing(cli, adopting=True) as manager, progress(manager):
        service = await manager.scale_service(name, instances, wait=not no_wait)
    stands = standing(service, just_requested=no_wait)
    say(f"{service.name} has {counted(instances, 'instance')}; it {stands}")
