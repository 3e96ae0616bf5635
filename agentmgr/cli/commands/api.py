"""`agentmgr api`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...proxy.certificate import Certificate
from ..group import Cli, subcommand
from ..listeners import Listeners, serve
from ..manager_options import kept, manager_options


@subcommand("api", example="agentmgr api --host localhost --port 8080 --proxy-port 9090")
@click.option("--host", help="The address to listen on.  [default: localhost]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 8080]")
@click.option("--proxy-port", type=click.IntRange(0, 65535), help="Also open the gateway here.")
@click.option("--health-interval", type=float, metavar="SECONDS", help="Between checks.  [default: 10]")
@manager_options
async def command(
    cli: Cli,
    host: str | None,
    port: int | None,
    proxy_port: int | None,
    health_interval: float | None,
    flags: dict[str, Any],
    tls: Certificate | None,
) -> None:
    """Open the REST API, until Ctrl-C; its documentation is at /docs.

    With a manager running it is that manager's API, and the gateway is as that of `agentmgr proxy`; without
    one, this process is the manager meanwhile.
    """
    settings = cli.settings(api_host=host, api_port=port, health_check_interval=health_interval, **flags)
    own = (["--health-interval"] if health_interval is not None else []) + (
        kept(flags) if proxy_port is None else []
    )
    await serve(cli, settings, Listeners(settings.api_host, proxy_port, settings.api_port, tls), kept=own)
