"""`agentmgr backup`"""

from __future__ import annotations

import os

import asyncclick as click

from ...client import ManagerClient
from ...errors import DatabaseUnusable, WrongState
from ...models.network_journal import shown
from ...process.paths import absolute
from ..group import Cli, subcommand
from ..managers import find_manager
from ..names import FILE
from ..out import note, say


@subcommand("backup", example="agentmgr backup agents-monday.db")
@click.argument("file", type=FILE)
async def command(cli: Cli, file: str) -> None:
    """Copy the database, as it is at one moment, to a new file; services and clients notice nothing.

    The sessions of services go to FILE.d/sessions beside it, and the keys of a cluster to FILE.d/cluster,
    where `restore` finds them: keep both as secret as the database. What other nodes of a cluster keep, their
    sessions and logs, is not in it, nor are sessions in a Redis.
    """
    destination = absolute(file)
    manager = (await find_manager(cli.paths)).client
    if manager is not None:
        await manager.backup(str(destination))
        elsewhere = await _other_nodes(manager)
        journals = {service.journal for service in await manager.list_services()}
    else:
        from ...manager.stored_sessions import StoredSessions
        from ...storage import open_store

        if not os.path.exists(cli.paths.database):  # noqa: ASYNC240  # one look, before any work begins
            raise DatabaseUnusable(f"there is no database at {cli.paths.database} to copy")
        async with open_store(cli.paths.database, read_only=True) as store:
            snapshot = await store.load()
            services, elsewhere = snapshot.services, sorted(node.name for node in snapshot.nodes)
            urls = (spec.config.journal_url(cli.settings().sessions_url) for spec in services)
            journals = {None if url is None else shown(url) for url in urls}
            await StoredSessions(cli.paths.sessions, lambda: services).back_up(store, destination)
    say(f"copied {cli.paths.database} to {destination}")
    if elsewhere:
        names = ", ".join(elsewhere)
        note(f"the sessions that nodes keep are not in it; they are in the nodes' own directories ({names})")
    if journals := journals - {None}:
        note(f"the sessions in {', '.join(sorted(map(str, journals)))} are not in it: back that up by itself")


async def _other_nodes(manager: ManagerClient) -> list[str]:
    try:
        return [node.name for node in await manager.list_nodes() if node.node_id]
    except WrongState:  # it has no cluster
        return []
