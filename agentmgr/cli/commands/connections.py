"""`agentmgr connections`"""

from __future__ import annotations

import asyncclick as click

from ..group import Cli, format_option, subcommand
from ..managers import for_reading
from ..names import SERVICE
from ..out import say_json
from ..render import ago, duration, print_table


@subcommand("connections", example="agentmgr connections --service my-echo-agent")
@click.option("--service", type=SERVICE, metavar="NAME", help="Only those of this service.")
@format_option
async def command(cli: Cli, service: str | None, output: str) -> None:
    """List the connections that are open through the gateway."""
    async with for_reading(cli) as manager:
        found = [
            connection
            for connection in await manager.list_connections()
            if service in (None, connection.service_name, connection.service_id)
        ]
    if output == "json":
        say_json(found)
        return
    print_table(
        ["id", "client", "service", "rule", "path", "for", "idle", "messages", "bytes"],
        [
            [
                c.connection_id,
                f"{c.client_ip}:{c.client_port}",
                c.service_name,
                c.rule,
                c.path,
                ago(c.started_at),
                duration(c.idle_s),
                f"{c.messages_from_client}/{c.messages_to_client}",
                f"{c.bytes_from_client}/{c.bytes_to_client}",
            ]
            for c in found
        ],
        empty="no connections are open",
    )
