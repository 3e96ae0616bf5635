"""`agentmgr daemon`"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import Any

import asyncclick as click
import trio

from ...errors import AgentManagerError, leaves
from ...logging_setup import configure_logging
from ...process.ownership import start_permit
from ...proxy.certificate import Certificate
from ...settings import Settings
from ...storage.sqlite import check
from ..foreground import managing, run_until_stopped
from ..group import Cli, subcommand
from ..listeners import Listeners, check_ports, open_here
from ..manager_options import manager_options
from ..managers import find_manager
from ..out import say
from ..signals import Notifier, stop_signals
from .shutdown import end


@subcommand("daemon", example="agentmgr daemon --interval 10 --api-port 8080 --proxy-port 9090")
@click.option("--host", default="localhost", show_default=True, help="Where API and gateway listen.")
@click.option(
    "--api-port", type=click.IntRange(0, 65535), help="Also open the REST API here; 0: a free port."
)
@click.option(
    "--proxy-port", type=click.IntRange(0, 65535), help="Also open the gateway here; 0: a free port."
)
@manager_options(
    health_check_interval="--interval",
    cluster="--cluster",
    cluster_host="--cluster-host",
    cluster_port="--cluster-port",
    node_labels="--node-label",
    ray_address="--ray-address",
    cluster_python="--cluster-python",
    gateways="--gateways",
    node_lost_after="--node-lost-after",
    sessions_url="--sessions-url",
)
@click.option("--leave-running", is_flag=True, help="At the end, leave the instances for the next manager.")
@click.option("--ready-fd", type=int, hidden=True, help="Gets a line when the manager is ready.")
async def command(
    cli: Cli,
    host: str,
    api_port: int | None,
    proxy_port: int | None,
    flags: dict[str, Any],
    tls: Certificate | None,
    leave_running: bool,
    ready_fd: int | None,
) -> None:
    """Run the manager in the foreground, until Ctrl-C or `agentmgr shutdown`.

    It replaces a manager that a command started in the background; the services keep running. At the end it
    drains the sessions, then stops the services; a second Ctrl-C or SIGTERM cuts sessions short, a third
    kills the services that still run.
    """
    settings = cli.settings(**flags)
    configure_logging(settings.log_level, settings.log_format)
    try:
        wanted = Listeners(host, proxy_port, api_port, tls)
        await check_ports(cli.paths, wanted)
        with ExitStack() as permit:
            if ready_fd is None:  # else the command that started this holds the permit
                if not cli.paths.directory.exists():  # nothing is put beside a file that is not ours to use
                    await check(cli.paths.database)
                permit.enter_context(await start_permit(cli.paths))
                await _relieve_background_manager(cli)
            await _run(cli, settings, wanted, leave_running, ready_fd, permit)
    except* AgentManagerError as group:
        _tell(ready_fd, next(leaves(group)).message)
        raise


async def _run(
    cli: Cli,
    settings: Settings,
    wanted: Listeners,
    leave_running: bool,
    ready_fd: int | None,
    permit: ExitStack,
) -> None:
    notifier = Notifier()
    background = ready_fd is not None
    async with (
        stop_signals() as signals,
        managing(cli, settings, signals, in_background=background) as (manager, listeners),
        trio.open_nursery() as nursery,
    ):
        say(f"managing {cli.paths.database}, pid {os.getpid()}", flush=True)
        await open_here(listeners, manager, wanted)
        permit.close()
        _tell(ready_fd, "ready")
        notifier.send("READY=1")
        nursery.start_soon(notifier.keep_alive)
        await run_until_stopped(manager, signals)
        notifier.send("STOPPING=1")
        if signals.first.is_set():  # else `agentmgr shutdown` said what becomes of the instances
            manager.request_shutdown(leave_running=leave_running)
        nursery.cancel_scope.cancel()


async def _relieve_background_manager(cli: Cli) -> None:
    client = (await find_manager(cli.paths)).client
    if client is not None and (await client.get_info())["background"]:
        pid = await end(client, leave_running=True)
        say(f"took over from the manager in the background, pid {pid}", flush=True)


def _tell(fd: int | None, line: str) -> None:
    """Writes a line to the process that started this in the background, once, and closes the pipe."""
    if fd is not None:
        with suppress(OSError):  # the line was written already, or the reader is gone
            os.set_inheritable(fd, False)
            os.write(fd, line.encode() + b"\n")
            os.close(fd)
