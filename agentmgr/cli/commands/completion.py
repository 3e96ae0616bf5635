"""`agentmgr completion`"""

from __future__ import annotations

import asyncclick as click
from asyncclick.shell_completion import get_completion_class

from ..group import Cli, root, subcommand
from ..out import say


@subcommand("completion", example='eval "$(agentmgr completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
async def command(cli: Cli, shell: str) -> None:
    """Print a completion script for your shell; put the example into its startup file."""
    completion = get_completion_class(shell)
    assert completion is not None
    say(completion(root, {}, "agentmgr", "_AGENTMGR_COMPLETE").source(), lines=True)
