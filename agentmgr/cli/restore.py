"""`agentmgr restore`"""

from __future__ import annotations

from pathlib import Path

import asyncclick as click

from ..ownership import ManagerLock
from ..storage import restore
from .group import Cli, subcommand
from .names import FILE
from .out import note, on_terminal, say


@subcommand("restore", example="agentmgr restore agents-monday.db")
@click.argument("file", type=FILE)
async def command(cli: Cli, file: str) -> None:
    """Put a copy that `backup` made in the database's place; with no manager running.

    The copy is checked before anything is replaced, and the database that was there is kept.
    """
    with ManagerLock(cli.paths) as lock:
        if cli.paths.database.exists():  # a manager whose lock file was deleted holds the file itself
            lock.hold_database()
        if on_terminal():
            note(f"checking {file}")
        kept = await restore(Path(file), cli.paths.database)
    say(f"restored {cli.paths.database} from {file}")
    if kept is not None:
        say(f"what was there before is now {kept}")
