"""`agentmgr export`"""

from __future__ import annotations

from ..core.secrets import HIDDEN
from .declaration import written
from .group import Cli, subcommand
from .out import note, say
from .reach import for_reading


@subcommand("export", example="agentmgr export > services.toml")
async def command(cli: Cli) -> None:
    """Print services and routing rules as a file that `agentmgr apply` takes.

    Values of variables that look like secrets are not in it; applied to the same database, they stay.
    """
    async with for_reading(cli) as manager:
        text = written(await manager.list_services(), await manager.list_routing_rules())
    say(text, lines=True, end="")
    if HIDDEN in text:
        note(f'secrets are left out, as "{HIDDEN}": put them in before you apply it elsewhere')
