"""Parameters that a shell can complete from what is registered.

The names are read off the database, where a manager writes each before it reports it: that takes
milliseconds, and needs neither a manager nor its client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncclick as click

from .group import Cli

if TYPE_CHECKING:
    from asyncclick.shell_completion import CompletionItem


class Name(click.ParamType[str]):
    """The name of something that the database has a table of.

    Any word is accepted here: the command that uses it reports an unknown one.
    """

    name = "name"

    def __init__(self, table: str) -> None:
        self._table = table

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from asyncclick.shell_completion import CompletionItem

        given = ctx.params.get(param.name or "") or ()
        return [
            CompletionItem(name)
            for name in _names(ctx, self._table)
            if name.startswith(incomplete) and name not in given
        ]


def _names(ctx: click.Context, table: str) -> list[str]:
    from ..storage import names

    try:
        return names(ctx.ensure_object(Cli).paths.database, table)
    except Exception:  # who types wants no word of ours in the line, whatever is wrong
        return []


SERVICE = Name("services")
RULE = Name("rules")
TOKEN = Name("tokens")
NODE = Name("nodes")

# Completed as the shell does it; who uses the file says what is wrong with it.
FILE = click.Path(readable=False)
DIRECTORY = click.Path(readable=False, file_okay=False)
