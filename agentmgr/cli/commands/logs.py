"""`agentmgr logs`"""

from __future__ import annotations

import asyncclick as click
import trio

from ..group import Cli, subcommand
from ..managers import for_reading
from ..names import SERVICE
from ..out import program_output


@subcommand("logs", example="agentmgr logs my-echo-agent --tail 50 --follow")
@click.argument("name", type=SERVICE)
@click.option(
    "--tail", default=100, show_default=True, type=click.IntRange(min=0), help="How many past lines."
)
@click.option("--follow", "-f", is_flag=True, help="Then show new output as it is written.")
@click.option("--instance", type=int, metavar="N", help="Only this instance; the first is 0.")
async def command(cli: Cli, name: str, tail: int, follow: bool, instance: int | None) -> None:
    """Show the output of a service; the last lines of several instances come one instance after the other."""
    async with for_reading(cli) as manager:
        async with manager.read_logs(name, tail=tail, follow=follow, instance=instance) as chunks:
            with program_output() as show:
                async for chunk in chunks:
                    show(chunk)
                    await trio.lowlevel.checkpoint()
