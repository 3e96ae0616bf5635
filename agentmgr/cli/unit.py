"""`agentmgr unit`"""

from __future__ import annotations

import os
import shlex
import sys

import asyncclick as click

from .group import Cli, subcommand

_UNIT = """\
[Unit]
Description=agentmgr, managing {database}
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={command}
WorkingDirectory={directory}
Restart=on-failure
RestartSec=1
WatchdogSec=30
# The manager stops its services itself. Should it be killed, they serve on, and its next start adopts them.
KillMode=process
TimeoutStopSec=180
# Each instance has a control group of its own, for its limits, and to be ended as a whole.
Delegate=yes
DelegateSubgroup=manager
LimitNOFILE=65536

[Install]
WantedBy={target}
"""


@subcommand(
    "unit",
    example="agentmgr unit --user --proxy-port 9090 > ~/.config/systemd/user/agentmgr.service\n"
    "systemctl --user enable --now agentmgr",
)
@click.option("--user", is_flag=True, help="For `systemctl --user`, rather than for the system.")
@click.option("--host", help="Where API and gateway listen.")
@click.option("--api-port", type=click.IntRange(1, 65535), help="Also open the REST API here.")
@click.option("--proxy-port", type=click.IntRange(1, 65535), help="Also open the gateway here.")
async def command(
    cli: Cli, user: bool, host: str | None, api_port: int | None, proxy_port: int | None
) -> None:
    """Print a systemd unit that runs the manager of this database, as this Python and from this directory.

    It tells systemd when it is ready (Type=notify), and is restarted when it hangs (WatchdogSec).
    """
    words = [sys.executable, "-m", "agentmgr", "daemon", "--db-path", str(cli.paths.database)]
    for option, value in (("--host", host), ("--api-port", api_port), ("--proxy-port", proxy_port)):
        if value is not None:
            words += [option, str(value)]
    print(
        _UNIT.format(
            database=cli.paths.database,
            command=shlex.join(words).replace("%", "%%"),  # systemd's own specifiers begin with it
            directory=os.getcwd().replace("%", "%%"),
            target="default.target" if user else "multi-user.target",
        ),
        end="",
    )
