"""`agentmgr restore`"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import asyncclick as click
import trio

from ...errors import Conflict
from ...journal.copies import draft, put_back
from ...process.ownership import ManagerLock
from ...process.paths import RuntimePaths
from ...storage import open_store, restore
from ...supervisor.belonging import Stranger, claim, strangers
from ..group import Cli, subcommand
from ..names import FILE
from ..out import note, on_terminal, say


@subcommand("restore", example="agentmgr restore agents-monday.db")
@click.argument("file", type=FILE)
@click.option("--as-new", is_flag=True, help="Leave instances that run to the database they belong to.")
@click.option("--take-over", is_flag=True, help="Adopt them, now that the database they belong to is gone.")
async def command(cli: Cli, file: str, as_new: bool, take_over: bool) -> None:
    """Put a copy that `backup` made in the database's place; with no manager running.

    The copy is checked before anything is replaced. What was there is kept: the database, and its sessions
    where the copy has some. What asked for tokens still does. A copy of another database may record instances
    that run: say whose they are now. The nodes of a cluster are the copy's, except with --as-new.
    """
    if as_new and take_over:
        raise click.UsageError("--as-new and --take-over exclude each other.")
    with ManagerLock(cli.paths) as lock:
        if cli.paths.database.exists():  # a manager whose lock file was deleted holds the file itself
            lock.hold_database()
        if on_terminal():
            note(f"checking {file}")
        async with open_store(file, read_only=True) as copy:
            others = strangers((await copy.load()).instances, cli.paths.logs)
        if others and not as_new:
            _check_owners(file, others, take_over)
        forget = frozenset(other.record.instance_id for other in others if not take_over)
        copied = RuntimePaths.of(file)
        if copied.sessions.is_dir() or copied.cluster.is_dir():
            copied.check()
        journals = await trio.to_thread.run_sync(draft, copied.sessions, cli.paths.sessions)
        try:
            kept = await restore(Path(file), cli.paths.database, forget=forget, as_new=as_new)
            kept_journals = None if journals is None else put_back(journals, cli.paths.sessions)
        finally:
            if journals is not None:
                shutil.rmtree(journals, ignore_errors=True)
        kept_ca = None
        if copied.cluster.is_dir() and not as_new:
            from ...ca import Authority  # here: one machine has none
            from ...ca import put_back as put_back_ca
            from ...generation import note_restored

            kept_ca = put_back_ca(copied.cluster, cli.paths.cluster)
            if Authority.is_in(cli.paths.cluster):
                note_restored(cli.paths.cluster)
        for other in others if take_over else ():
            claim(other, cli.paths.logs)
        async with open_store(cli.paths.database, read_only=True) as store:
            policy = await store.token_policy()
            nodes = sorted(node.name for node in (await store.load()).nodes if node.node_id)
    say(f"restored {cli.paths.database} from {file}")
    if kept is not None:
        say(f"what was there before is now {kept}")
    say(f"tokens: {policy}")
    if kept_ca is not None:
        say(f"the keys of the cluster of before are kept in {kept_ca}: its nodes have to join again")
    if nodes:
        _say_nodes(cli, copied, nodes)
    if kept_journals is not None:
        say(f"the sessions of before are kept in {kept_journals}, until you remove it or restore again")


def _say_nodes(cli: Cli, copied: RuntimePaths, names: Sequence[str]) -> None:
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
    if not (cli.paths.cluster / "ca.pem").exists():
        note(
            f"its nodes ({listed}) cannot link with it: the keys of its cluster are missing; bring "
            f"{copied.cluster} along too, and restore again"
        )
    else:
        say(
            f"its nodes ({listed}) leave the manager of before for this one; where this is another machine, "
            "type on each `agentmgr node --join THIS_MACHINE:PORT --directory DIR`, unless Ray keeps it"
        )


def _check_owners(file: str, others: Sequence[Stranger], take_over: bool) -> None:
    """Raises `Conflict` where it was not said whose the instances are, or they cannot be taken over."""
    for other in others:
        if not take_over:
            raise Conflict(
                f"{file} records {other}: with --as-new that database keeps its instances, and this one "
                "starts its own; with --take-over they become this one's"
            )
        if other.owner_is_there:
            raise Conflict(
                f"{file} records {other}, which is still there and would adopt it too: restore with "
                "--as-new, or remove that one first, with the directory beside it"
            )
