"""`agentmgr disconnect`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, each, subcommand
from ..managers import running
from ..out import say


@subcommand("disconnect", example="agentmgr disconnect con_3f0c9a5e7b1d2468 --reason maintenance")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--code", default=1008, show_default=True, help="The close code that the client sees.")
@click.option("--reason", default="", help="The reason that the client sees.")
async def command(cli: Cli, ids: tuple[str, ...], code: int, reason: str) -> int:
    """Close connections, on both sides. An id is from `agentmgr connections`, or the `connection_id` that an
    agent's client sees.
    """
    manager = await running(cli)

    async def close(connection_id: str) -> None:
        await manager.disconnect(connection_id, code=code, reason=reason)
        say(f"closed {connection_id}")

    return await each(cli, ids, close)
