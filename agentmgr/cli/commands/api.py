"""`agentmgr api`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...proxy.certificate import Certificate
from ..group import Cli, subcommand
from ..listeners import Listeners, serve
from ..manager_options import kept, manager_options


@subcommand("api", example="agentmgr api --host localhost --port 8080 --proxy-port 9090")
@click.option("--proxy-port", type=click.IntRange(0, 65535), help="Also open the gateway here.")
@manager_options(api_host="--host", api_port="--port", health_check_interval="--health-interval")
async def command(
    cli: Cli,
    proxy_port: int | None,
    flags: dict[str, Any],
    tls: Certificate | None,
) -> None:
    """Open the REST API, until Ctrl-C; its documentation is at /docs, and the console at /console/.

    With a manager running it is that manager's API, and the gateway is as that of `agentmgr proxy`; without
    one, this process is the manager meanwhile.
    """
    settings = cli.settings(**flags)
    wanted = Listeners(settings.api_host, proxy_port, settings.api_port, tls)
    await serve(cli, settings, wanted, kept=kept(flags, gateway=proxy_port is None))
