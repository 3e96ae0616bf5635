"""`agentmgr proxy`"""

from __future__ import annotations

from typing import Any

from ...proxy.certificate import Certificate
from ..group import Cli, subcommand
from ..listeners import Listeners, serve
from ..manager_options import kept, manager_options


@subcommand("proxy", example="agentmgr proxy --host localhost --port 9090")
@manager_options(proxy_host="--host", proxy_port="--port", health_check_interval="--health-interval")
async def command(
    cli: Cli,
    flags: dict[str, Any],
    tls: Certificate | None,
) -> None:
    """Open the gateway that clients connect to, until Ctrl-C.

    With a manager running, this process and its workers serve that manager's clients until this command ends,
    even when the manager is killed or replaced. Without one, this process is the manager until then.
    """
    settings = cli.settings(**flags)
    wanted = Listeners(settings.proxy_host, settings.proxy_port, None, tls)
    await serve(cli, settings, wanted, kept=kept(flags, gateway=False))
