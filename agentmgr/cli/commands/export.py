"""`agentmgr export`"""

from __future__ import annotations

import os
from pathlib import Path

import asyncclick as click

from ...core.secrets import HIDDEN, has_secrets
from ...errors import InvalidRequest
from ...process.trust import Distrusted, opened
from ..declaration import written
from ..group import Cli, subcommand
from ..managers import for_reading, with_secrets
from ..names import FILE
from ..out import note, say

_WITH_SECRETS = "# Contains secrets: the values of all variables of the services, and URLs of hooks.\n\n"


@subcommand(
    "export", example="agentmgr export > services.toml\nagentmgr export --with-env --output secrets.toml"
)
@click.option(
    "--with-env",
    is_flag=True,
    help="With what may be secret: the values of all variables, and the URLs of --on-failure.",
)
@click.option(
    "--output", "path", type=FILE, metavar="FILE", help="Write it there, for its owner only (mode 0600)."
)
async def command(cli: Cli, with_env: bool, path: str | None) -> None:
    """Print services and routing rules as a file that `agentmgr apply` takes.

    Values of variables are hidden in it, except those of --env-public, and so are the URLs of --on-failure;
    applied to the same database, they stay as they are.
    """
    async with for_reading(cli) as manager:
        services = await (with_secrets(manager) if with_env else manager.list_services())
        rules = await manager.list_routing_rules()
    secret = with_env and any(has_secrets(service.config) for service in services)
    text = (_WITH_SECRETS if secret else "") + written(services, rules)
    if path is None:
        say(text, lines=True, end="")
    else:
        _write(path, text)
    if secret:
        note("this contains secrets: the values of all variables of the services, and URLs of --on-failure")
    elif HIDDEN in text:
        note(f'variables and URLs of hooks are hidden, as "{HIDDEN}": `agentmgr export --with-env` has them')


def _write(path: str, text: str) -> None:
    try:  # one that another user has put there would be his to read, or lead to a file of ours
        fd = opened(Path(path), os.O_WRONLY | os.O_CREAT)
    except Distrusted as problem:
        raise InvalidRequest(str(problem)) from None
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)  # before the text: the file may be one that others can read
        file.truncate()
        file.write(text)
