"""`agentmgr unit`"""

from __future__ import annotations

import os
import shlex
import sys
from pwd import getpwuid

import asyncclick as click

from ..group import Cli, subcommand
from ..options import directory_for
from ..out import say

_UNIT = """\
[Unit]
Description=agentmgr, managing {database}
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
{user}ExecStart={command}
WorkingDirectory={directory}
# As in the shell that printed this: where the services' commands are found.
Environment="PATH={path}"
Restart=on-failure
RestartSec=1
WatchdogSec=30
# It stops its services and gateway itself. Should it be killed, they serve on, and the next one adopts them.
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
    """Print a systemd unit that runs the manager of this database, as this user and this Python, from here.

    It tells systemd when it is ready (Type=notify), and is restarted when it hangs (WatchdogSec). With --user
    it runs while you are logged in; after `loginctl enable-linger` from boot on.
    """
    words = [sys.executable, "-P", "-m", "agentmgr", "daemon", "--db-path", str(cli.paths.database)]
    for option, value in (("--host", host), ("--api-port", api_port), ("--proxy-port", proxy_port)):
        if value is not None:
            words += [option, str(value)]
    say(
        _UNIT.format(
            database=cli.paths.database,
            # A unit of the system would run as root, and so would all services.
            user="" if user else f"User={_user()}\n",
            command=_plain(shlex.join(words)),
            directory=_plain(directory_for(str(cli.paths.database))),
            path=_plain(os.environ.get("PATH", os.defpath)).replace('"', '\\"'),
            target="default.target" if user else "multi-user.target",
        ),
        lines=True,
        end="",
    )


def _plain(text: str) -> str:
    return text.replace("%", "%%")  # systemd's own specifiers begin with it


def _user() -> str:
    try:
        return getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in containers
        return str(os.geteuid())
