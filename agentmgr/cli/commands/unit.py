"""`agentmgr unit`"""

from __future__ import annotations

import os
import shlex
import sys
from pwd import getpwuid

import asyncclick as click

from ...errors import InvalidRequest
from ...process.paths import absolute
from ..group import Cli, subcommand
from ..names import DIRECTORY
from ..options import directory_for
from ..out import say

_UNIT = """\
[Unit]
Description={description}
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
# {at_its_end}
KillMode=process
TimeoutStopSec=180
# Each instance has a control group of its own, for its limits, and to be ended as a whole.
Delegate=yes
DelegateSubgroup=manager
LimitNOFILE=65536

[Install]
WantedBy={target}
"""

_END = "It stops its services and gateway. Should it be killed, they serve on, and the next one adopts them."
_END_OF_A_NODE = "Its instances live on, and the next one adopts them."


@subcommand(
    "unit",
    example="agentmgr unit --user --proxy-port 9090 > ~/.config/systemd/user/agentmgr.service\n"
    "systemctl --user enable --now agentmgr",
)
@click.option("--user", is_flag=True, help="For `systemctl --user`, rather than for the system.")
@click.option("--host", help="Where API and gateway listen.")
@click.option("--api-port", type=click.IntRange(1, 65535), help="Also open the REST API here.")
@click.option("--proxy-port", type=click.IntRange(1, 65535), help="Also open the gateway here.")
@click.option(
    "--node", type=DIRECTORY, metavar="DIR", help="For the node in this directory, rather than for a manager."
)
async def command(
    cli: Cli, user: bool, host: str | None, api_port: int | None, proxy_port: int | None, node: str | None
) -> None:
    """Print a systemd unit that runs the manager of this database, as this user and this Python, from here.

    It tells systemd when it is ready (Type=notify), and is restarted when it hangs (WatchdogSec). With --user
    it runs while you are logged in; after `loginctl enable-linger` from boot on.
    """
    words = [sys.executable, "-P", "-m", "agentmgr"]
    given = {"--host": host, "--api-port": api_port, "--proxy-port": proxy_port}
    options = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    if node is None:
        where = str(cli.paths.database)
        words += ["daemon", "--db-path", where, *options]
    else:
        where = _node_in(node)
        if options:
            raise click.UsageError(f"{options[0]} is of a manager, and not of a node.")
        words += ["node", "--directory", where]
    say(
        _UNIT.format(
            description=_plain(f"agentmgr, {'managing' if node is None else 'the node in'} {where}"),
            at_its_end=_END if node is None else _END_OF_A_NODE,
            # A unit of the system would run as root, and so would all services.
            user="" if user else f"User={_user()}\n",
            command=_plain(shlex.join(words)),
            directory=_plain(directory_for(where)),
            path=_plain(os.environ.get("PATH", os.defpath)).replace('"', '\\"'),
            target="default.target" if user else "multi-user.target",
        ),
        lines=True,
        end="",
    )


def _node_in(directory: str) -> str:
    """Raises `InvalidRequest`."""
    found = absolute(directory)
    if not (found / "node.json").exists():
        raise InvalidRequest(
            f"{found} is no node's: run `agentmgr node --directory {directory} --join HOST:PORT` once"
        )
    return str(found)


def _plain(text: str) -> str:
    return text.replace("%", "%%")  # systemd's own specifiers begin with it


def _user() -> str:
    try:
        return getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in containers
        return str(os.geteuid())
