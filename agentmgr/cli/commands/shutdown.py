"""`agentmgr shutdown`"""

from __future__ import annotations

import os
from contextlib import ExitStack

import asyncclick as click
import trio

from ...client.api import ManagerClient
from ...errors import ManagerNotRunning
from ..group import Cli, subcommand
from ..managers import find_manager
from ..out import note, say
from ..watch import progress


@subcommand("shutdown", example="agentmgr shutdown")
@click.option("--leave-running", is_flag=True, help="The instances serve on; the next manager adopts them.")
async def command(cli: Cli, leave_running: bool) -> None:
    """Shut down the manager and its services; returns when its process is gone."""
    manager = await find_manager(cli.paths)
    if manager.client is None and not manager.silent:
        from ..offline import offline  # brings SQLite, which a running manager makes needless

        async with offline(cli.paths) as found:
            services = await found.list_services()
        # Those on nodes are not this machine's: their manager may be on another one by now.
        left = [it.name for it in services if any(not instance.node_id for instance in it.instances)]
        nodes = sorted({instance.node for it in services for instance in it.instances if instance.node_id})
        if left:
            raise ManagerNotRunning(
                f"no manager is running, and instances of {', '.join(left)} run without one: "
                f"`agentmgr stop {' '.join(left)}` ends them, `agentmgr daemon` adopts them"
            )
        from ...manager.worker_set import end_left

        if count := await end_left(cli.paths):
            note(f"no manager is running; ended what served its gateway, {count} processes")
        else:
            note("no manager is running")
        if nodes:
            note(f"what ran on {', '.join(nodes)} when one did is not ended by this")
        return
    client = manager.required()
    async with progress(client):
        await end(client, leave_running=leave_running)
    say("the manager has ended" + (", and left its instances running" if leave_running else ""))


async def end(client: ManagerClient, *, leave_running: bool = False) -> int:
    """Ends the manager; returns its pid, when its process is gone."""
    pid = int((await client.get_info())["pid"])
    with ExitStack() as stack:
        # Opened while the process is known to live, so that the pid cannot be another's.
        process = os.pidfd_open(pid)
        stack.callback(os.close, process)
        await client.request_shutdown(leave_running=leave_running)
        await trio.lowlevel.wait_readable(process)
    return pid
