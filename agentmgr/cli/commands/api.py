"""`agentmgr api`"""

from __future__ import annotations

from functools import partial
from typing import Any

import asyncclick as click
import trio

from ...logging_setup import configure_logging
from ...proxy.certificate import Certificate
from ...settings import Settings
from ..attach import Listener, attach
from ..foreground import StopSignals, managing, run_until_stopped, stop_signals
from ..group import Cli, subcommand
from ..listeners import check_ports, open_api, open_gateway
from ..manager_options import kept, manager_options
from ..out import note
from ..presence import manages_unless_another_does


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

    With a manager running it is that manager's API; without one, this process is the manager meanwhile.
    """
    settings = cli.settings(api_host=host, api_port=port, health_check_interval=health_interval, **flags)
    configure_logging(settings.log_level, settings.log_format)
    async with stop_signals() as signals:
        manage = partial(_manage, cli, settings, proxy_port, tls, signals)
        if await manages_unless_another_does(cli.paths, manage):
            return
        own = (["--health-interval"] if health_interval is not None else []) + kept(flags)
        if own:
            note(f"a manager is running already; it keeps its own {', '.join(own)}")
        async with trio.open_nursery() as nursery:
            if proxy_port is not None:
                gateway = Listener("proxy", settings.api_host, proxy_port, tls, settings.proxy_protocol)
                nursery.start_soon(attach, cli, gateway, signals.first)
            await attach(cli, Listener("api", settings.api_host, settings.api_port, tls), signals.first)


async def _manage(
    cli: Cli, settings: Settings, proxy_port: int | None, tls: Certificate | None, signals: StopSignals
) -> None:
    host, port = settings.api_host, settings.api_port
    await check_ports(cli.paths, host, gateway=proxy_port, api=port)
    async with managing(cli, settings, signals) as (manager, listeners):
        await open_api(listeners, manager, host, port, tls)
        if proxy_port is not None:
            await open_gateway(listeners, manager, host, proxy_port, tls)
        await run_until_stopped(manager, signals)
