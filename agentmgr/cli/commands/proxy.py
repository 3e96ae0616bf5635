"""`agentmgr proxy`"""

from __future__ import annotations

from functools import partial
from typing import Any

import asyncclick as click

from ...logging_setup import configure_logging
from ...proxy.certificate import Certificate
from ...settings import Settings
from ..attach import naming_port_owner
from ..beside import serve_beside
from ..foreground import StopSignals, managing, run_until_stopped, stop_signals
from ..group import Cli, subcommand
from ..listeners import check_ports, open_gateway
from ..manager_options import manager_options
from ..out import note
from ..presence import manages_unless_another_does


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
    configure_logging(settings.log_level, settings.log_format)
    async with stop_signals() as signals:
        if await manages_unless_another_does(cli.paths, partial(_manage, cli, settings, tls, signals)):
            return
        if health_interval is not None:
            note("a manager is running already; it keeps its own --health-interval")
        async with naming_port_owner(cli, "proxy", settings.proxy_port):
            await serve_beside(cli, settings, tls, signals.first)


async def _manage(cli: Cli, settings: Settings, tls: Certificate | None, signals: StopSignals) -> None:
    host, port = settings.proxy_host, settings.proxy_port
    await check_ports(cli.paths, host, gateway=port)
    async with managing(cli, settings, signals) as (manager, listeners):
        await open_gateway(listeners, manager, host, port, tls)
        await run_until_stopped(manager, signals)
