"""`agentmgr proxy`"""

from __future__ import annotations

from typing import Any

import asyncclick as click

from ...proxy.certificate import Certificate
from ..group import Cli, subcommand
from ..listeners import Listeners, serve
from ..manager_options import manager_options


@subcommand("proxy", example="agentmgr proxy --host localhost --port 9090")
@click.option("--host", help="The address to listen on.  [default: localhost]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 9090]")
@click.option("--health-interval", type=float, metavar="SECONDS", help="Between checks.  [default: 10]")
@manager_options
async def command(
    cli: Cli,
    host: str | None,
    port: int | None,
    health_interval: float | None,
    flags: dict[str, Any],
    tls: Certificate | None,
) -> None:
    """Open the gateway that clients connect to, until Ctrl-C.

    With a manager running, this process and its workers serve that manager's clients until this command ends,
    even when the manager is killed or replaced. Without one, this process is the manager until then.
    """
    settings = cli.settings(proxy_host=host, proxy_port=port, health_check_interval=health_interval, **flags)
    wanted = Listeners(settings.proxy_host, settings.proxy_port, None, tls)
    await serve(cli, settings, wanted, kept=["--health-interval"] if health_interval is not None else [])
